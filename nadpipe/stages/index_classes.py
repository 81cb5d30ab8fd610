"""What the values of a data set's masks mean: its classes, with their names, mask values and colours."""

from pathlib import Path

from nadpipe.artifacts import Stamp
from nadpipe.class_tables import write_classes
from nadpipe.classes import make_classes, read_class_file, reduce_zero_label, rename
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.layouts import LAYOUTS, find_classes


def index_classes(
    layout: str,
    path: Path,
    output: Path,
    dataset: str = "segmentation",
    split: str | None = None,
    class_file: Path | None = None,
    classes: tuple[str, ...] = (),
    reduce_zero: bool = False,
    ignore: int = 255,
) -> None:
    """Write the table of a data set's classes.

    Args:
        layout: How the data set lies on disk; a published one brings its own classes.
        path: Where it lies.
        output: Parquet table, one row a class, and one of what is ignored.
        dataset: Name of the data set in the table.
        split: Split of a published layout.
        class_file: Class file, .csv or .txt: the classes of a table, or other names for those of a published layout.
        classes: The same as arguments: for each class `name, synonym` or `title: name, synonym`, in the order of mask values.
        reduce_zero: Mask value 0 does not count and 1 is the first class; not for published layouts, which know it themselves.
        ignore: Mask value that does not count, for classes given as arguments.
    """
    if classes and class_file:
        raise NadpipeError("give either --classes or --class-file")
    given = read_class_file(class_file) if class_file else make_classes(classes, ignore) if classes else None
    if layout in LAYOUTS and (given is None or LAYOUTS[layout] is not None):
        found = find_classes(layout, path, split)
        if given is not None:
            found = rename(found, given, f"datasets.{dataset}.classes")
    elif given is not None:
        found = reduce_zero_label(given) if reduce_zero else given
    else:
        raise NadpipeError(f"datasets.{dataset}.classes: a {layout} has no classes of its own; list them or name a class file")
    write_classes(output, found, dataset, Stamp(code=code_fingerprint(__name__)))
