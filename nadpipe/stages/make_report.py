"""Make the report: one self-contained page about a run."""

import json
from pathlib import Path

from nadpipe.pages.report import render_report
from nadpipe.store.arrays import open_zarr
from nadpipe.store.atomic import atomic_path
from nadpipe.store.kinds.features import SHARD_MEANS


def make_report(
    results: Path,
    head_means: tuple[Path, ...],
    output: Path,
    segmented: tuple[str, ...] = (),
    concepts: tuple[str, ...] = (),
    missing: str = "{}",
    unmasked: str = "{}",
    copy: tuple[str, str] | None = None,
) -> None:
    """Write a page that needs no network and no other file.

    Args:
        results: Folder of a run's results, with the final tables that the config allows.
        head_means: Shard means, which hold the largest error of the sums over pairs.
        output: HTML file.
        segmented: Data sets that were segmented.
        concepts: Concepts that were scored, in the order to show.
        missing: What the config lacks for further results, as a JSON object: the need, and what to do.
        unmasked: Segmented data sets without masks, as a JSON object: the data set, and what would give masks.
        copy: Folder of the images as the manifest names it, and the folder of the copy to read instead.
    """
    largest_residual = max(open_zarr(path, SHARD_MEANS).attributes["largest_residual"] for path in head_means)
    page = render_report(results, largest_residual, segmented, concepts, json.loads(missing), json.loads(unmasked), copy)
    with atomic_path(output) as partial:
        partial.write_text(page, encoding="utf-8")
