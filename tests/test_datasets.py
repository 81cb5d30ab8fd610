import functools
import operator

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nadpipe.datasets import add_sizes, read_table, read_tree, shard_rows
from nadpipe.errors import NadpipeError


@pytest.fixture
def folder(tmp_path):
    for name, size in {
        "2019/cat/a b.jpg": (8, 6),
        "2019/dog/ü.PNG": (5, 7),
        "2020/cat/c.webp": (9, 9),
        "top.bmp": (4, 4),
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_gives_groups_and_labels_by_its_folders(folder):
    rows = add_sizes(read_tree(folder))
    assert rows["path"].tolist() == [
        str(folder / name) for name in ("2019/cat/a b.jpg", "2019/dog/ü.PNG", "2020/cat/c.webp", "top.bmp")
    ]
    assert rows["group"].tolist() == ["2019", "2019", "2020", None]
    assert rows["label"].tolist() == ["cat", "dog", "cat", None]
    assert rows[["width", "height"]].to_numpy().tolist() == [[8, 6], [5, 7], [9, 9], [4, 4]]
    assert rows["image_id"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_table_keeps_its_own_columns_and_its_paths_are_relative_to_it(folder, form):
    table = pd.DataFrame(
        {
            "file": ["top.bmp", "2020/cat/c.webp"],
            "year": [2019, None],
            "mask": ["m.png", None],
            "fish": [0, 1],
            "width": [1, 2],
        }
    )
    Image.new("L", (4, 4)).save(folder / "m.png")
    path = folder / f"t.{form}"
    table.to_csv(path, index=False) if form == "csv" else table.to_parquet(path)
    rows = add_sizes(read_table(path, "file", "mask", "year", None))
    assert rows["path"].tolist() == [str(folder / "top.bmp"), str(folder / "2020/cat/c.webp")]
    assert rows["mask_path"].tolist() == [str(folder / "m.png"), None]
    assert rows["group"].tolist() == ["2019", None]
    assert rows["label"].tolist() == [None, None]
    assert rows["fish"].tolist() == [0, 1]
    assert rows["width"].tolist() == [4, 9]
    assert rows["source_width"].tolist() == [1, 2]
    assert rows["year"].tolist()[0] == 2019  # a column that serves as group stays under its own name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,year\n", "no rows"),
        ("a,b\n1,2\n", "no column file; it has a, b"),
        ("file,x\n,1\n", "column file is empty in row 1"),
        ("", "not a readable CSV or Parquet table"),
    ],
)
def test_tables_that_do_not_fit_are_one_line(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(NadpipeError, match=message) as error:
        read_table(path, "file", None, None, None)
    assert "\n" not in str(error.value)


def test_missing_tables_images_and_empty_folders_are_named(tmp_path):
    with pytest.raises(NadpipeError, match=r"gone\.csv: not a readable"):
        read_table(tmp_path / "gone.csv", "path", None, None, None)
    with pytest.raises(NadpipeError, match="no images"):
        read_tree(tmp_path)
    with pytest.raises(NadpipeError, match=r"gone\.jpg: no such image"):
        add_sizes(pd.DataFrame({"path": ["gone.jpg"], "mask_path": None, "group": None, "label": None}))


@pytest.mark.parametrize(("images", "shards"), [(1, 1), (10, 3), (7, 7), (1000, 16)])
def test_shards_share_all_images_nearly_equally(images, shards):
    parts = [list(shard_rows(images, shard, shards)) for shard in range(shards)]
    assert functools.reduce(operator.iadd, parts, []) == list(range(images))
    sizes = np.array([len(part) for part in parts])
    assert sizes.min() >= 1
    assert np.ptp(sizes) <= 1


def test_more_shards_than_images_are_refused():
    with pytest.raises(NadpipeError, match="shards is 4 for 3 images"):
        shard_rows(3, 0, 4)


@pytest.mark.parametrize(("name", "message"), [("small.png", "mask is 2 × 3, its image 4 × 4 pixels"), ("no.png", "no such")])
def test_masks_are_looked_at_before_anything_is_computed(folder, name, message):
    Image.new("L", (2, 3)).save(folder / "small.png")
    (folder / "t.csv").write_text(f"path,mask\ntop.bmp,{name}\n")
    with pytest.raises(NadpipeError, match=f"{name}: {message}"):
        add_sizes(read_table(folder / "t.csv", "path", "mask", None, None))
