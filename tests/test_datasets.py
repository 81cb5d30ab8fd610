import functools
import operator

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import savemat

from nadpipe.data.layouts import LAYOUTS, Source
from nadpipe.data.manifest import examine, shard_rows
from nadpipe.data.tables import add_labels, read_table
from nadpipe.errors import NadpipeError


def list_images(layout, root, split=None):
    return LAYOUTS[layout].list_images(Source(root, split))


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


def test_a_tree_takes_groups_and_labels_from_its_folders(folder):
    rows = examine(list_images("tree", folder))
    assert rows["path"].tolist() == [
        str(folder / name) for name in ("2019/cat/a b.jpg", "2019/dog/ü.PNG", "2020/cat/c.webp", "top.bmp")
    ]
    assert rows["group"].tolist() == ["2019", "2019", "2020", None]
    assert rows["label"].tolist() == ["cat", "dog", "cat", None]
    assert rows[["width", "height"]].to_numpy().tolist() == [[8, 6], [5, 7], [9, 9], [4, 4]]
    assert rows["image_id"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_table_keeps_its_columns_and_its_paths_are_relative_to_its_folder(folder, form):
    table = pd.DataFrame(
        {
            "file": ["top.bmp", "2020/cat/c.webp"],
            "year": pd.array([2019, None], dtype="Int64"),
            "mask": ["m.png", None],
            "fish": [0, 1],
            "width": [1, 2],
        }
    )
    Image.new("L", (4, 4)).save(folder / "m.png")
    path = folder / f"t.{form}"
    table.to_csv(path, index=False) if form == "csv" else table.to_parquet(path)
    rows = examine(read_table(path, "file", "mask", "year", None))
    assert rows["path"].tolist() == [str(folder / "top.bmp"), str(folder / "2020/cat/c.webp")]
    assert rows["mask_path"].tolist() == [str(folder / "m.png"), None]
    assert rows["group"].tolist() == ["2019", None]
    assert rows["label"].tolist() == [None, None]
    assert rows["fish"].tolist() == [0, 1]
    assert rows["width"].tolist() == [4, 9]
    assert rows["source_width"].tolist() == [1, 2]
    assert rows["year"].tolist()[0] == 2019  # the group's column is also kept under its own name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,year\n", "no rows"),
        ("a,b\n1,2\n", "no column file; .*a, b"),
        ("file,x\n,1\n", "column file is empty in row 1"),
        ("", "not a readable CSV or Parquet table"),
    ],
)
def test_an_invalid_table_is_reported_in_one_line(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(NadpipeError, match=message) as error:
        read_table(path, "file", None, None, None)
    assert "\n" not in str(error.value)


def test_missing_tables_images_and_empty_folders_are_reported(tmp_path):
    with pytest.raises(NadpipeError, match=r"gone\.csv: not a readable"):
        read_table(tmp_path / "gone.csv", "path", None, None, None)
    with pytest.raises(NadpipeError, match="no images"):
        list_images("tree", tmp_path)
    with pytest.raises(NadpipeError, match=r"gone\.jpg: no such image"):
        examine(pd.DataFrame({"path": ["gone.jpg"], "mask_path": None, "group": None, "label": None}))


@pytest.mark.parametrize(("images", "shards"), [(1, 1), (10, 3), (7, 7), (1000, 16)])
def test_shards_divide_all_images_nearly_equally(images, shards):
    blocks = [list(shard_rows(images, shard, shards)) for shard in range(shards)]
    assert functools.reduce(operator.iadd, blocks, []) == list(range(images))
    sizes = np.array([len(block) for block in blocks])
    assert sizes.min() >= 1
    assert np.ptp(sizes) <= 1


def test_more_shards_than_images_are_refused():
    with pytest.raises(NadpipeError, match="shards is 4 for 3 images"):
        shard_rows(3, 0, 4)


@pytest.mark.parametrize(("name", "message"), [("small.png", "mask is 2 × 3, its image 4 × 4 pixels"), ("no.png", "no such")])
def test_masks_are_checked_with_their_images(folder, name, message):
    Image.new("L", (2, 3)).save(folder / "small.png")
    (folder / "t.csv").write_text(f"path,mask\ntop.bmp,{name}\n")
    with pytest.raises(NadpipeError, match=f"{name}: {message}"):
        examine(read_table(folder / "t.csv", "path", "mask", None, None))


@pytest.fixture
def cars(tmp_path):
    """A small copy of Stanford Cars, with MATLAB struct arrays in its .mat files."""
    names = np.array(["AM General Hummer SUV 2000", "Audi TTS Coupe 2012"], dtype=object)
    (tmp_path / "devkit").mkdir()
    savemat(tmp_path / "devkit/cars_meta.mat", {"class_names": names})
    kinds = [("bbox_x1", object), ("class", object), ("fname", object)]
    for split, name in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = np.array([(1, 2, "00001.jpg"), (3, 1, "00002.jpg")], dtype=kinds)
        savemat(tmp_path / name, {"annotations": rows})
        (tmp_path / f"cars_{split}").mkdir()
        for image in ("00001.jpg", "00002.jpg"):
            Image.new("RGB", (5, 4)).save(tmp_path / f"cars_{split}" / image)
    return tmp_path


@pytest.mark.parametrize("split", [None, "train", "test"])
def test_cars_have_their_class_as_label_and_its_year_as_group(cars, split):
    rows = examine(list_images("stanford_cars", cars, split))
    assert rows["path"].tolist() == [str(cars / f"cars_{split or 'train'}" / name) for name in ("00001.jpg", "00002.jpg")]
    assert rows["label"].tolist() == ["Audi TTS Coupe 2012", "AM General Hummer SUV 2000"]
    assert rows["group"].tolist() == ["2012", "2000"]


@pytest.mark.parametrize("missing", ["devkit/cars_meta.mat", "devkit/cars_train_annos.mat"])
def test_missing_and_invalid_files_of_stanford_cars_are_reported(cars, missing):
    (cars / missing).unlink()
    with pytest.raises(NadpipeError, match=rf"{missing}: missing; expected .*stanford_cars.* devkit/cars_meta\.mat"):
        list_images("stanford_cars", cars)
    (cars / missing).write_bytes(b"no matlab")
    with pytest.raises(NadpipeError, match="not a readable MATLAB file"):
        list_images("stanford_cars", cars)
    with pytest.raises(NadpipeError, match=r"no split val; .*train, test"):
        list_images("stanford_cars", cars, "val")


def test_a_label_table_adds_columns(cars):
    (cars / "colours.csv").write_text("image,colour,convertible\ncars_train/00002.jpg,red,0\n00001,blue,1\n")
    rows = add_labels(list_images("stanford_cars", cars), cars / "colours.csv")
    assert rows[["red", "blue", "convertible"]].to_numpy().tolist() == [[0, 1, 1], [1, 0, 0]]
    assert examine(rows)["red"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,colour\n00001,red\n", "1 images are missing, first 00002"),
        ("image,colour\n00001,red\n00001,red\n", "lists 00001 twice"),
        ("image,doors\n00001,4\n00002,2\n", "column doors holds numbers other than 0 and 1"),
        ("", "not a readable CSV"),
    ],
)
def test_an_invalid_label_table_is_reported(cars, content, message):
    (cars / "labels.csv").write_text(content)
    with pytest.raises(NadpipeError, match=rf"labels\.csv: {message}"):
        add_labels(list_images("stanford_cars", cars), cars / "labels.csv")
