"""Define the demo's data sets, the concepts that drift over the years, and the dictionary that names the units."""

from collections.abc import Iterator

import numpy as np

from nadpipe.demo.world import BACKGROUNDS, COLOURS, KINDS, TEXTURES, Odds, Scene, draw_scene, write_caption

YEARS = range(2018, 2026)
# Word -> weight in the first and in the last year. Within a group, each increase is balanced by a decrease, so that no other
# word drifts.
DRIFTS = {"fish": (0.2, 1.8), "snail": (1.8, 0.2), "sand": (0.2, 1.8), "sky": (1.8, 0.2)}
# Set -> stream of random numbers, so that no two sets share a scene, whatever their seeds. `methods` resembles `segmentation`.
# Its scenes chose the variants of the segmentation methods (benchmarks/segmentation_methods.py).
SETS = {"discovery": 7919, "methods": 7920, "monitoring": 7921, "segmentation": 7922}
_SEGMENTED = ("segmentation", "methods")


def draw_set(name: str, images: int, seed: int) -> Iterator[tuple[Scene, dict[str, object]]]:
    """Yield the scenes of one set, each with its row of the table.

    A row has a caption, the background, the objects, the year (`monitoring` only), and 0 or 1 for every word. A scene depends
    only on the set, the year, the seed and its number.

    images: number of images of the set; for `monitoring`, of each year.
    """
    years = YEARS if name == "monitoring" else (None,)
    for position, year in enumerate(years):
        share = position / (len(years) - 1) if len(years) > 1 else 0
        weight = {word: first + share * (last - first) for word, (first, last) in DRIFTS.items()} if year else {}
        for number in range(images):
            rng = np.random.default_rng([seed, SETS[name], position, number])
            height, width = _SIZES[rng.integers(len(_SIZES))] if name in _SEGMENTED else (192, 192)
            odds = Odds(count=(0.0, 0.4, 0.4, 0.2), radius=(34.0, 66.0)) if name in _SEGMENTED else Odds(weight=weight)
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


_SIZES = ((192, 192), (192, 256), (256, 192), (240, 288))  # height and width of the segmentation scenes, in pixels


def dictionary() -> list[str]:
    """Return the texts that name the demo's units: every word, and pairs of words that can both be true of a scene."""
    words = [*KINDS, *COLOURS, *TEXTURES, *BACKGROUNDS]
    things = [f"{first} {kind}" for first in (*COLOURS, *TEXTURES) for kind in KINDS]
    looks = [f"{colour} {texture}" for colour in COLOURS for texture in TEXTURES]
    places = [f"{kind} on {background}" for kind in KINDS for background in BACKGROUNDS]
    return [*words, *things, *looks, *places]
