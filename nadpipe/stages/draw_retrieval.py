"""Draw the top images of the largest neurons and of their pairs.

Source: Bu & Gandelsman, arXiv 2509.19943, that some pairs, while polysemantic, stand for sub-concepts of their neurons.
"""

from pathlib import Path

import pandas as pd

from nadpipe.artifacts import read_images, read_parquet, whole
from nadpipe.pictures import contact_sheet, shrink
from nadpipe.progress import track
from nadpipe.views import read_image

_SIDE = 110  # pixels of a picture


def draw_retrieval(
    images: Path,
    polysemanticity: Path,
    output: Path,
    neurons: int = 12,
    pairs: int = 6,
    shown: int = 8,
    copy: tuple[str, str] | None = None,
) -> None:
    """Write a sheet for each of the largest neurons: its top images, then those of its largest pairs, with their texts.

    Args:
        images: Manifest of the discovery images.
        polysemanticity: Top images of all units.
        output: Folder of the sheets, neuron-<neuron>.png.
        neurons: Sheets, of the neurons of largest contribution.
        pairs: Pairs on a sheet, largest contribution first.
        shown: Images of a unit.
        copy: The folder that the manifest says its images lie in, and where a copy of it is, if they are read from a copy.
    """
    paths = read_images(images, copy).set_index("image_id")["path"]
    table = read_parquet(polysemanticity, "polysemanticity").dropna(subset="spread").sort_values("contribution_rank")
    chosen = table[table["unit"] == "neuron"].head(neurons)
    with whole(output) as folder:
        folder.mkdir()
        for row in track(list(chosen.itertuples()), "drawing top images", "neuron"):
            own = table[(table["unit"] == "pair") & (table["neuron"] == row.neuron)].head(pairs)
            sections = {f"neuron: {_about(row)}": [_entry(row, paths, shown)]}
            sections |= {f"head {int(pair.head)}: {_about(pair)}": [_entry(pair, paths, shown)] for pair in own.itertuples()}
            contact_sheet(f"Top images of neuron {row.neuron} and of its pairs", sections, {}, _SIDE).save(
                folder / f"neuron-{row.neuron}.png"
            )


def _about(row: tuple) -> str:
    """A unit's texts (by direction, and of pairs by their images) and how far its top images are apart."""
    texts = dict.fromkeys(text for text in (row.nearest_text, row.active_text) if isinstance(text, str))
    return f"{'; '.join(texts)}, spread {row.spread:.2f}"


def _entry(row: tuple, paths: pd.Series, shown: int) -> tuple[str, list]:
    return "", [shrink(read_image(paths.loc[image_id]), _SIDE) for image_id in row.images[:shown]]
