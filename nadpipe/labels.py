"""Class labels of a data set as texts: for zero-shot classification."""

import re
from collections.abc import Sequence

from nadpipe.errors import NadpipeError

_SYNSET = re.compile(r"n\d{8}")


def label_texts(labels: Sequence[str]) -> list[str]:
    """The text of each label: ImageNet's synsets (n01440764) by open_clip's class names, others as they are with _ as a space.

    Raises NadpipeError for a synset that is none of ImageNet's 1,000.
    """
    if all(_SYNSET.fullmatch(label) for label in labels):
        names = _imagenet()
        unknown = [label for label in labels if label not in names]
        if unknown:
            raise NadpipeError(
                f"label {unknown[0]}: not one of ImageNet's 1,000 classes; name the labels in a column of a table"
            )
        return [names[label] for label in labels]
    return [" ".join(label.replace("_", " ").split()) for label in labels]


def _imagenet() -> dict[str, str]:
    """ImageNet's synsets with open_clip's names, which come in the same order."""
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    return dict(zip(ImageNetInfo().label_names(), IMAGENET_CLASSNAMES, strict=True))
