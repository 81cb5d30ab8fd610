import pandas as pd
import pytest

from nadpipe.data.labels import attribute_columns, label_texts
from nadpipe.errors import NadpipeError


def test_labels_are_texts_and_synsets_are_imagenets_names():
    assert label_texts(["grass", "red_fox", "a  b"]) == ["grass", "red fox", "a b"]
    assert label_texts(["n01440764", "n02690373"]) == ["tench", "airliner"]
    with pytest.raises(NadpipeError, match="label n99999999: not one of ImageNet"):
        label_texts(["n01440764", "n99999999"])


def test_attributes_are_the_columns_of_zeros_and_ones():
    table = pd.DataFrame({"path": ["a", "b"], "red": [0, 1], "year": [2018, 2019], "blue": [1.0, 0.0], "some": [1, None]})
    assert attribute_columns(table) == ["red", "blue"]
    odd = table.assign(image_id=[0, 1], lists=[[0], [1]], truth=[True, False], words=["0", "1"])
    assert attribute_columns(odd) == ["red", "blue", "truth"]
