"""Stage check_masks: masks are read before features, and their pixels are counted."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nadpipe.circuit.label_values import IGNORED
from nadpipe.errors import NadpipeError
from nadpipe.stages.check_masks import check_masks
from nadpipe.stages.index_classes import index_classes
from nadpipe.stages.index_images import index_images
from nadpipe.store.kinds.images import MASKS
from nadpipe.store.tables import read_parquet


@pytest.fixture
def check(tmp_path):
    """Return a function that checks masks, given as arrays or None, against three classes, and returns the table."""

    def check(*masks):
        paths = []
        for number, values in enumerate(masks):
            Image.new("RGB", (3, 2)).save(tmp_path / f"{number}.png")
            paths.append(None if values is None else f"m{number}.png")
            if values is not None:
                Image.fromarray(np.array(values, np.uint8).reshape(2, 3)).save(tmp_path / f"m{number}.png")
        table = pd.DataFrame({"path": [f"{number}.png" for number in range(len(masks))], "mask": paths})
        table.to_csv(tmp_path / "t.csv", index=False)
        index_images("table", tmp_path / "t.csv", tmp_path / "images.parquet", mask_column="mask")
        index_classes("table", tmp_path / "t.csv", tmp_path / "classes.parquet", dataset="own", classes=("a", "b", "c"))
        check_masks(tmp_path / "images.parquet", tmp_path / "classes.parquet", tmp_path / "masks.parquet", threads=2)
        return read_parquet(tmp_path / "masks.parquet", MASKS)

    return check


def test_pixels_and_images_of_each_class_are_counted(check):
    table = check([0, 0, 1, 1, 1, 255], [0, 0, 0, 0, 0, 0])
    assert table["class"].tolist() == [0, 1, 2, IGNORED]
    assert table["title"].tolist() == ["a", "b", "c", None]
    assert table["pixels"].tolist() == [8, 3, 0, 1]
    assert table["images"].tolist() == [2, 1, 0, 1]


def test_a_value_without_class_and_a_missing_mask_are_reported(check, tmp_path):
    with pytest.raises(NadpipeError) as error:
        check([0, 0, 1, 1, 1, 7], [0, 0, 0, 0, 0, 0])
    assert str(error.value) == f"{tmp_path}/m0.png: mask holds 7; allowed are 0 to 2, 255"
    with pytest.raises(NadpipeError) as error:
        check([0, 0, 1, 1, 1, 7], None, [9, 0, 0, 0, 0, 0])
    lines = str(error.value).split("\n")
    assert lines[0] == "3 of 3 masks cannot be used; correct them, or the classes of own"
    assert lines[1] == f"{tmp_path}/images.parquet: image 1 ({tmp_path}/1.png) has no mask; add it or remove the image"
    assert [line.split(": ")[1] for line in lines[2:]] == [
        "mask holds 7; allowed are 0 to 2, 255",
        "mask holds 9; allowed are 0 to 2, 255",
    ]
    assert not (tmp_path / "masks.parquet").exists()
    with pytest.raises(NadpipeError) as error:
        check(*[[7] * 6] * 30)
    assert len(str(error.value).split("\n")) == 11


def test_a_data_set_without_masks_has_no_pixels(check):
    assert check(None, None)["pixels"].tolist() == [0, 0, 0, 0]
