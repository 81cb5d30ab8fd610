"""Segment image files with classes that texts name, by the pairs of a finished run."""

from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro
from rich.console import Console
from rich.table import Table

from nadpipe.circuit import segmentation
from nadpipe.errors import printable, visible
from nadpipe.library.segmentation import segment_files

_LARGEST = 5  # classes in a row of the printed table


def segment(
    images: Annotated[tuple[Path, ...], tyro.conf.Positional],
    texts: tuple[str, ...],
    output: Path,
    results: Path = Path("results"),
    methods: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--method"])] = ("nad",),
    background_names: bool = True,
    background_threshold: float = 0.0,
    area_threshold: float = 0.0,
    device: str = "auto",
) -> None:
    """Write label maps, overlays and the shares of the classes for image files, as the workflow would for these classes.

    The model, the directions and all settings are those of the run. Every pixel gets one of the classes.

    Args:
        images: Image files.
        texts: Classes: "name, synonym" or "title: name, synonym", at least two.
        output: New folder: labels/<method>/ (indexed PNG), overlays/ and shares.csv.
        results: Folder of a run's results.
        methods: Methods to run; docs/configuration.md lists them.
        background_names: Let the names of a class called background compete with the other names.
        background_threshold: Pixels whose best class is less probable become background.
        area_threshold: Classes that cover a smaller share of an image are removed, except background.
        device: auto, cpu, cuda, cuda:1, ….
    """
    options = (background_names, background_threshold, area_threshold, device)
    _print(segment_files(images, texts, output, results, methods, *options), output)


def _print(shares: pd.DataFrame, output: Path) -> None:
    """Print the largest shares of each image and method, and where the files are."""
    table = Table()
    for name in ("image", "method", "largest shares"):
        table.add_column(name)
    for (image, method, k), rows in shares.groupby(["image", "method", "k"], sort=False, dropna=False):
        largest = rows[rows["pixels"] > 0].nlargest(_LARGEST, "pixels")
        texts = [f"{title} {share:.1%}" for title, share in zip(largest["class"], largest["share"], strict=True)]
        table.add_row(
            visible(Path(image).name),
            segmentation.Variant(method, None if pd.isna(k) else int(k)).name,
            visible(", ".join(texts)),
        )
    Console(markup=False, emoji=False).print(table)
    for name in ("labels", "overlays", "shares.csv"):
        print(printable(str(output / name)))
