"""Plot the IoU of each class of a data set by method."""

from pathlib import Path

from nadpipe.errors import NadpipeError
from nadpipe.pages import plots
from nadpipe.store.atomic import atomic_path
from nadpipe.store.kinds.segmentation import PER_CLASS
from nadpipe.store.tables import read_parquet


def plot_classes(classes: Path, output: Path, dataset: str = "segmentation") -> None:
    """Draw the IoU of every class by method.

    Args:
        classes: Parquet table of all data sets, methods and classes.
        output: PNG.
        dataset: Data set to draw.
    """
    table = read_parquet(classes, PER_CLASS, filters=[("dataset", "==", dataset)])
    if table.empty:
        raise NadpipeError(f"{classes}: no data set {dataset}; score it first")
    k = table["k"].astype("Int64")
    table["method"] = table["method"].where(k.isna(), table["method"] + "-k" + k.astype(str))
    with atomic_path(output) as partial:
        plots.save(plots.per_class_bars(table), partial)
