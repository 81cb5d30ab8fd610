"""The demo as ordinary files: what its sets hold, which concepts drift, and the dictionary that names its units."""

from collections.abc import Iterator

import numpy as np

from nadpipe.demo.world import BACKGROUNDS, COLOURS, KINDS, TEXTURES, Odds, Scene, draw_scene, write_caption

YEARS = range(2018, 2026)
# word -> weight in the first and in the last year; what rises takes from what falls, so no other word moves
DRIFTS = {"fish": (0.2, 1.8), "snail": (1.8, 0.2), "sand": (0.2, 1.8), "sky": (1.8, 0.2)}
SETS = ("discovery", "segmentation", "monitoring")


def draw_set(name: str, images: int, seed: int) -> Iterator[tuple[Scene, dict[str, object]]]:
    """Scenes of one set with their rows of the table: caption, background, what is in it, year, and 0/1 for every word.

    images: of the set, or of each year for `monitoring`. A scene depends on set, seed and number alone.
    """
    years = YEARS if name == "monitoring" else (None,)
    for position, year in enumerate(years):
        share = position / (len(years) - 1) if len(years) > 1 else 0
        weight = {word: first + share * (last - first) for word, (first, last) in DRIFTS.items()} if year else {}
        for number in range(images):
            rng = np.random.default_rng([seed, 7919 + SETS.index(name), position, number])
            height, width = (192, 192) if name != "segmentation" else _SIZES[rng.integers(len(_SIZES))]
            odds = Odds(weight=weight) if name != "segmentation" else Odds(count=(0.0, 0.4, 0.4, 0.2), radius=(34.0, 66.0))
            scene = draw_scene(rng, height, width, odds)
            row = {
                "caption": write_caption(rng, scene),
                "background": scene.background,
                "kinds": ";".join(thing.kind for thing in scene.things),
                "colours": ";".join(thing.colour for thing in scene.things),
                "textures": ";".join(thing.texture for thing in scene.things),
                **({"year": year} if year else {}),
                **scene.truth(),
            }
            yield scene, row


_SIZES = ((192, 192), (192, 256), (256, 192), (240, 288))


def dictionary() -> list[str]:
    """Texts that name the demo's units: every word, and pairs of words that can be true together."""
    words = [*KINDS, *COLOURS, *TEXTURES, *BACKGROUNDS]
    things = [f"{first} {kind}" for first in (*COLOURS, *TEXTURES) for kind in KINDS]
    looks = [f"{colour} {texture}" for colour in COLOURS for texture in TEXTURES]
    places = [f"{kind} on {background}" for kind in KINDS for background in BACKGROUNDS]
    return [*words, *things, *looks, *places]
