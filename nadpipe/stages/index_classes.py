"""Write the classes of a data set: their names, mask values and colours."""

from pathlib import Path

from nadpipe.data.class_tables import write_classes
from nadpipe.data.classes import make_classes, read_class_file, reduce_zero_label, rename
from nadpipe.data.layouts import Source, find_layout
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.store.stamp import Stamp


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
        layout: Layout of the data set. Published layouts have their own classes.
        path: The table or the folder.
        output: Parquet table: one row per class, and one for ignored values.
        dataset: Name of the data set in the table.
        split: Split of the data set. By default the layout's own, such as the validation split.
        class_file: Class file, .csv or .txt: the classes of the data set, or new names for the classes of a published layout.
        classes: `name, synonym` or `title: name, synonym` per class, in the order of mask values, instead of a class file.
        reduce_zero: Ignore mask value 0; value 1 is the first class. Published layouts decide this themselves.
        ignore: Mask value to ignore, if the classes are given as arguments.
    """
    if classes and class_file:
        raise NadpipeError("--classes: --class-file is given too; give only one of them")
    record, key = find_layout(layout), f"datasets.{dataset}.classes"
    listed = read_class_file(class_file) if class_file else make_classes(classes, ignore) if classes else None
    if listed is not None and not record.has_fixed_values:
        indexed = reduce_zero_label(listed) if reduce_zero else listed
    elif not record.has_classes:
        raise NadpipeError(f"{key}: missing; list the classes or name a class file, because the layout {layout} has none")
    else:
        indexed = record.find_classes(Source(path, split))
        indexed = indexed if listed is None else rename(indexed, listed, key)
    write_classes(output, indexed, dataset, Stamp(code=code_fingerprint(__name__)))
