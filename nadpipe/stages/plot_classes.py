"""Plot how well each method finds each class of a data set."""

from pathlib import Path

from nadpipe import plots
from nadpipe.artifacts import read_parquet, whole
from nadpipe.errors import NadpipeError
from nadpipe.progress import track


def plot_classes(classes: Path, output: Path, dataset: str = "segmentation") -> None:
    """Draw the IoU of every class and method.

    Args:
        classes: Table of all data sets, methods and classes.
        output: PNG.
        dataset: Data set to draw.
    """
    table = read_parquet(classes, "per_class", filters=[("dataset", "==", dataset)])
    if table.empty:
        raise NadpipeError(f"{classes}: no data set {dataset}; score it first")
    k = table["k"].astype("Int64")
    table["method"] = table["method"].where(k.isna(), table["method"] + "-k" + k.astype(str))
    for figure in track([plots.per_class_bars(table)], "plotting", "figure"):
        with whole(output) as partial:
            plots.save(figure, partial)
