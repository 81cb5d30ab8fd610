"""Texts of a data set's class labels, for zero-shot classification, and of its 0/1 columns."""

import re
from collections.abc import Sequence

import pandas as pd

from nadpipe.errors import NadpipeError
from nadpipe.store.kinds.images import IMAGES
from nadpipe.towers.word_lists import imagenet_names, imagenet_synsets

_SYNSET = re.compile(r"n\d{8}")


def label_texts(labels: Sequence[str]) -> list[str]:
    """Return the text of each label: open_clip's class name if all are ImageNet synsets (n01440764), else the label itself.

    In labels that are not synsets, underscores become spaces. Raises NadpipeError if a synset is not one of ImageNet's 1,000.
    """
    if not all(_SYNSET.fullmatch(label) for label in labels):
        return [" ".join(label.replace("_", " ").split()) for label in labels]
    names = dict(zip(imagenet_synsets(), imagenet_names(), strict=True))
    unknown = [label for label in labels if label not in names]
    if unknown:
        raise NadpipeError(f"label {unknown[0]}: not one of ImageNet's 1,000 classes; name the labels in a column of a table")
    return [names[label] for label in labels]


def attribute_columns(images: pd.DataFrame) -> list[str]:
    """Return the columns of the source that hold 0 or 1 for every image."""
    return [name for name in images.columns if name not in IMAGES.columns and is_binary(images[name])]


def is_binary(column: pd.Series) -> bool:
    """Return True if a column holds 0 or 1 for every image."""
    return pd.api.types.is_numeric_dtype(column) and bool(column.isin([0, 1]).all())  # lists, for example, cannot be compared
