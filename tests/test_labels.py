import pytest

from nadpipe.data.labels import label_texts
from nadpipe.errors import NadpipeError


def test_labels_are_texts_and_synsets_are_imagenets_names():
    assert label_texts(["grass", "red_fox", "a  b"]) == ["grass", "red fox", "a b"]
    assert label_texts(["n01440764", "n02690373"]) == ["tench", "airliner"]
    with pytest.raises(NadpipeError, match="label n99999999: not one of ImageNet"):
        label_texts(["n01440764", "n99999999"])
