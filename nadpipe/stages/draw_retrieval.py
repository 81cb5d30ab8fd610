"""Draw the top images of the largest neurons and of their pairs.

Source: Bu & Gandelsman, arXiv 2509.19943, who find that some pairs, although polysemantic, represent sub-concepts of their
neurons.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from nadpipe.data.views import read_image
from nadpipe.pages.pictures import contact_sheet, shrink
from nadpipe.progress import track
from nadpipe.store.atomic import atomic_path
from nadpipe.store.kinds.analyses import POLYSEMANTICITY
from nadpipe.store.kinds.units import LAYER_COLUMNS
from nadpipe.store.manifest import read_images
from nadpipe.store.tables import read_parquet

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
    """Write one sheet per neuron: its top images and those of its largest pairs, with their texts.

    Args:
        images: Manifest of the discovery images.
        polysemanticity: Top images of all units.
        output: Folder of the sheets, neuron-<neuron>.png.
        neurons: Number of sheets: the neurons with the largest contribution.
        pairs: Number of pairs per sheet, largest contribution first.
        shown: Number of images per unit.
        copy: Folder of the images as the manifest names it, and the folder of the copy to read instead.
    """
    manifest = read_images(images, copy).set_index("image_id")
    table = read_parquet(polysemanticity, POLYSEMANTICITY).dropna(subset="spread").sort_values("contribution_rank")
    largest = table[table["unit"] == "neuron"].head(neurons)
    with atomic_path(output) as folder:
        folder.mkdir()
        for neuron in track(list(largest.itertuples()), "drawing top images", "neuron"):
            largest_pairs = table[(table["unit"] == "pair") & (table["neuron"] == neuron.neuron)].head(pairs)
            sections = {f"neuron: {_caption(neuron)}": [_entry(neuron, manifest, shown)]}
            for pair in largest_pairs.itertuples():
                head = f"{int(pair.layer)}.{int(pair.layer_head)}" if set(LAYER_COLUMNS) <= set(table) else str(int(pair.head))
                sections[f"head {head}: {_caption(pair)}"] = [_entry(pair, manifest, shown)]
            sheet = contact_sheet(f"Top images of neuron {neuron.neuron} and of its pairs", sections, {}, _SIDE)
            sheet.save(folder / f"neuron-{neuron.neuron}.png")


def _caption(unit: Any) -> str:
    """Return a unit's texts, by direction and (pairs only) by correlation, and the spread of its top images."""
    texts = dict.fromkeys(text for text in (unit.nearest_text, unit.active_text) if isinstance(text, str))
    return f"{'; '.join(texts)}, spread {unit.spread:.2f}"


def _entry(unit: Any, manifest: pd.DataFrame, shown: int) -> tuple[str, list[tuple[str, Image.Image]]]:
    """Return the top images of a unit, without caption and titles."""
    rows = manifest.loc[list(unit.images[:shown]), ["path", "sha256"]]
    return "", [("", shrink(read_image(path, sha256), _SIDE)) for path, sha256 in rows.itertuples(index=False)]
