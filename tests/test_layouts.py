"""A small copy of each layout, with folders and mask encodings as downloaded and unpacked."""

import dataclasses
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from checkout import Checkout
from PIL import Image

from nadpipe.circuit.label_values import IGNORED
from nadpipe.data.layouts import LAYOUTS, Source, find_layout
from nadpipe.data.masks import read_mask
from nadpipe.errors import NadpipeError

ROOT = Path(__file__).parents[1]
H, W = 4, 6


def photograph(path, size=(W, H), orientation=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)).save(path, exif=exif)


def mask(path, values, mode="L"):
    """Save a mask whose first pixels hold the values; the other pixels hold the last value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((H, W), values[-1], np.uint16 if mode == "I;16" else np.uint8)
    pixels.flat[: len(values)] = values
    picture = Image.fromarray(pixels)
    if mode == "P":
        picture.putpalette(list(range(256)) * 3)
    picture.save(path)
    return path


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def make_voc(root, masks="SegmentationClass", lists="Segmentation", classes=("background", "aeroplane", "person"), last=15):
    """Write a data set of VOC. classes: those of values 0, 1 and `last`."""
    for name in ("2007_000033", "2007_000042"):
        photograph(root / "JPEGImages" / f"{name}.jpg")
        mask(root / masks / f"{name}.png", [0, 1, last, 255], "P")
    photograph(root / "JPEGImages" / "of_the_train_split.jpg")
    text(root / "ImageSets" / lists / "val.txt", "2007_000042\n2007_000033\n")
    return ["2007_000042", "2007_000033"], [*classes, None]


def make_context(root, first="background"):
    return make_voc(root, "SegmentationClassContext", "SegmentationContext", (first, "aeroplane", "wood"), last=59)


def make_ade20k(root):
    photograph(root / "images/validation/ADE_val_1.jpg", (H, W), orientation=6)
    photograph(root / "images/training/ADE_train_1.jpg")
    mask(root / "annotations/validation/ADE_val_1.png", [0, 1, 150])
    return ["ADE_val_1"], [None, "wall", "flag"]


def make_coco(root, classes):
    for name in ("000000000139", "000000000285"):
        photograph(root / f"images/val2017/{name}.jpg")
        mask(root / f"stuffthingmaps/val2017/{name}.png", [0, 12, 91, 181, 255])
    return ["000000000139", "000000000285"], ["person", "stop sign", *classes]


def make_cityscapes(root):
    for city in ("lindau", "frankfurt"):
        photograph(root / f"leftImg8bit/val/{city}/{city}_000000_000019_leftImg8bit.png")
        mask(root / f"gtFine/val/{city}/{city}_000000_000019_gtFine_labelIds.png", [7, 26, 33, 0, 3])
        mask(root / f"gtFine/val/{city}/{city}_000000_000019_gtFine_instanceIds.png", [7, 26001, 33], "I;16")
    return ["frankfurt/frankfurt_000000_000019_leftImg8bit", "lindau/lindau_000000_000019_leftImg8bit"], [
        *("road", "car", "bicycle", None, None)
    ]


def make_folder(root):
    photograph(root / "images/b.JPG", (H, W), orientation=8)
    photograph(root / "images/deeper/a.png")
    mask(root / "masks/b.png", [700, 1], "I;16")
    mask(root / "masks/deeper/a.png", [1, 1])
    text(root / "classes.csv", "names,values\ncat,1\nsky,700\n")
    return ["b", "deeper/a"], ["sky", "cat"]


# Functions that write a small data set. They return the names of its images, and the classes of the first mask's first pixels.
MAKERS = {
    "voc21": make_voc,
    "voc20": functools.partial(make_voc, classes=(None, "aeroplane", "person")),
    "context60": make_context,
    "context59": functools.partial(make_context, first=None),
    "ade20k": make_ade20k,
    "coco_stuff164k": functools.partial(make_coco, classes=("banner", "wood", None)),
    "coco_object": functools.partial(make_coco, classes=("background",) * 3),
    "cityscapes": make_cityscapes,
    "folder": make_folder,
}


def make(layout, root):
    """Write a small data set of a layout with classes."""
    assert layout in MAKERS, f"no small data set of the layout {layout}; add a function to MAKERS"
    return MAKERS[layout](root)


def list_images(layout, root, split=None):
    return LAYOUTS[layout].list_images(Source(root, split))


def find_classes(layout, root, split=None):
    return LAYOUTS[layout].find_classes(Source(root, split))


@pytest.mark.parametrize("layout", [name for name, layout in LAYOUTS.items() if layout.has_classes])
def test_images_masks_and_classes_are_found(tmp_path, layout):
    names, truth = make(layout, tmp_path)
    rows, classes = list_images(layout, tmp_path), find_classes(layout, tmp_path)
    assert list(rows.columns) == ["path", "mask_path", "group", "label"]
    assert [path.rsplit(".", 1)[0].endswith(name) for path, name in zip(rows["path"], names, strict=True)]
    read = read_mask(rows["mask_path"][0], rows["path"][0], (H, W), classes).ravel()[: len(truth)]
    assert [None if index == IGNORED else classes.titles[index] for index in read] == truth
    assert rows["group"].tolist() == (["frankfurt", "lindau"] if layout == "cityscapes" else [None] * len(rows))
    assert len(LAYOUTS[layout].class_files(tmp_path)) == 1
    expected = {"voc20": 20, "context59": 59, "folder": 2, "coco_object": 81, "coco_stuff164k": 171, "cityscapes": 19}
    assert len(classes.titles) == expected.get(layout, len(classes.titles))


@pytest.mark.parametrize("layout", ["voc20", "context59"])
def test_without_background_there_is_one_class_less(tmp_path, layout):
    make(layout, tmp_path)
    with_background = {"voc20": "voc21", "context59": "context60"}[layout]
    complete, rest = (find_classes(name, tmp_path) for name in (with_background, layout))
    assert complete.titles == ("background", *rest.titles)
    assert len(rest.titles) in (20, 59)


@pytest.mark.parametrize(
    ("layout", "masks", "end", "values", "titles"),
    [
        ("coco_stuff164k", "annotations/val2017", "_labelTrainIds.png", [0, 170, 255], ["person", "wood", None]),
        ("coco_stuff164k", "annotations/val2017", ".png", [0, 181, 255], ["person", "wood", None]),
        ("coco_object", "annotations/val2017", "_instanceTrainIds.png", [0, 80, 1], ["background", "toothbrush", "person"]),
    ],
)
def test_cocos_masks_may_be_converted(tmp_path, layout, masks, end, values, titles):
    photograph(tmp_path / "images/val2017/1.jpg")
    path = mask(tmp_path / masks / f"1{end}", values)
    mask(tmp_path / "stuffthingmaps/val2017/1.png", [255])  # the first encoding counts
    classes = find_classes(layout, tmp_path)
    assert list_images(layout, tmp_path)["mask_path"].tolist() == [str(path)]
    read = read_mask(str(path), "", (H, W), classes).ravel()[:3]
    assert [None if index == IGNORED else classes.titles[index] for index in read] == titles


def test_cityscapes_masks_may_be_converted(tmp_path):
    make("cityscapes", tmp_path)
    for city in ("lindau", "frankfurt"):
        mask(tmp_path / f"gtFine/val/{city}/{city}_000000_000019_gtFine_labelTrainIds.png", [0, 13, 18, 255])
    classes, rows = find_classes("cityscapes", tmp_path), list_images("cityscapes", tmp_path)
    read = read_mask(rows["mask_path"][0], rows["path"][0], (H, W), classes).ravel()[:4]
    assert [classes.titles[index] for index in read[:3]] == ["road", "car", "bicycle"]
    assert read[3] == IGNORED


def test_a_folders_masks_may_be_coloured(tmp_path):
    make("folder", tmp_path)
    text(tmp_path / "classes.csv", "names,red,green,blue\nsky,0,0,255\ncat,255,0,0\n,0,0,0\n")
    pixels = np.zeros((H, W, 3), np.uint8)
    pixels[0, :2] = (0, 0, 255), (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "masks/b.png")
    rows, classes = list_images("folder", tmp_path), find_classes("folder", tmp_path)
    assert read_mask(rows["mask_path"][0], rows["path"][0], (H, W), classes)[0, :3].tolist() == [0, 1, IGNORED]


def test_other_splits_are_chosen_by_name(tmp_path):
    make("folder", tmp_path)
    text(tmp_path / "splits/few.txt", "deeper/a\n")
    assert list_images("folder", tmp_path, "few")["path"].tolist() == [str(tmp_path / "images/deeper/a.png")]
    make("ade20k", tmp_path / "ade")
    mask(tmp_path / "ade/annotations/training/ADE_train_1.png", [1])
    assert list_images("ade20k", tmp_path / "ade", "training")["path"].str.endswith("ADE_train_1.jpg").tolist() == [True]


MISSING = [  # layout, missing file or folder, key words of the message
    ("voc21", "JPEGImages", r"JPEGImages: missing; expected .*voc21.* VOCdevkit/VOC2012"),
    ("voc21", "ImageSets/Segmentation/val.txt", r"ImageSets/Segmentation/val\.txt: missing; expected .*voc21"),
    ("voc20", "SegmentationClass", r"SegmentationClass/2007_000042\.png: no such mask; expected .*voc20"),
    ("voc20", "SegmentationClass/2007_000033.png", r"2007_000033\.png: no such mask"),
    ("voc20", "JPEGImages/2007_000033.jpg", r"2007_000033\.jpg: no such image"),
    ("context60", "SegmentationClassContext", r"no such mask; expected .*context60.* VOCdevkit/VOC2010"),
    ("ade20k", "images/validation", r"images/validation: missing; expected .*ade20k.* ADEChallengeData2016"),
    ("ade20k", "images/validation/ADE_val_1.jpg", r"images/validation: no images \*\.jpg for split validation"),
    (
        "coco_stuff164k",
        "stuffthingmaps",
        r"139_labelTrainIds\.png or .*139\.png or .*stuffthingmaps/val2017/0+139\.png: no such mask",
    ),
    ("cityscapes", "gtFine", r"gtFine_labelTrainIds\.png or .*_gtFine_labelIds\.png: no such mask; expected .*cityscapes"),
    ("folder", "masks/b.png", r"masks/b\.png: no such mask"),
    ("folder", "classes.csv", r"classes\.csv: no class file; expected .*folder"),
    ("stanford_cars", "devkit", r"devkit/cars_meta\.mat: missing; expected .*stanford_cars"),
    ("tree", "images", "no images"),
]


@pytest.mark.parametrize(("layout", "missing", "message"), MISSING)
def test_a_missing_path_is_reported_with_the_expected_layout(tmp_path, layout, missing, message):
    if LAYOUTS[layout].has_classes:
        make(layout, tmp_path)
        (tmp_path / missing).rename(tmp_path.with_name(f"{tmp_path.name}_away"))
    with pytest.raises(NadpipeError, match=message) as error:
        list_images(layout, tmp_path)
        find_classes(layout, tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_may_have_no_masks(tmp_path):
    make("folder", tmp_path)
    source = {"path": str(tmp_path)}
    assert LAYOUTS["folder"].lacks("masks", source) is None
    paths = list_images("folder", tmp_path)["path"].tolist()
    shutil.rmtree(tmp_path / "masks")
    rows = list_images("folder", tmp_path)
    assert rows["path"].tolist() == paths
    assert rows["mask_path"].tolist() == [None] * len(paths)
    assert LAYOUTS["folder"].lacks("masks", source) == f"path: {tmp_path} has no folder masks; add the masks"
    assert LAYOUTS["folder"].lacks("masks", {"path": "s3://bucket/photos"}) is None


def test_a_folder_lists_the_remaining_images(tmp_path):
    make("folder", tmp_path)
    (tmp_path / "images/b.JPG").unlink()
    assert len(list_images("folder", tmp_path)) == 1


def test_a_folder_one_level_too_high_is_reported(tmp_path):
    make("voc21", tmp_path / "VOC2012")
    with pytest.raises(NadpipeError, match=f"set path to {tmp_path / 'VOC2012'}$"):
        list_images("voc21", tmp_path)
    with pytest.raises(NadpipeError, match="JPEGImages: missing"):
        list_images("voc21", tmp_path / "no such folder")


def test_an_unknown_split_is_reported_with_the_list_of_splits(tmp_path):
    make("voc21", tmp_path)
    for read in (list_images, find_classes):
        with pytest.raises(NadpipeError, match=r"voc21: no split test; .*val, train, trainval"):
            read("voc21", tmp_path, "test")
    make("folder", tmp_path / "folder")
    with pytest.raises(NadpipeError, match=r"splits/val\.txt: missing; expected .*splits/<split>\.txt"):
        list_images("folder", tmp_path / "folder", "val")
    text(tmp_path / "folder/splits/val.txt", "b\nzebra\n")
    with pytest.raises(NadpipeError, match=r"zebra\.\*: no such image; .*val\.txt"):
        list_images("folder", tmp_path / "folder", "val")


def test_rows_are_a_table_without_labels(tmp_path):
    make("voc21", tmp_path)
    rows = list_images("voc21", tmp_path)
    assert isinstance(rows, pd.DataFrame)
    assert rows["label"].tolist() == [None, None]


# ------------------------------------------------------------------------------------------------------------ the registry


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_record_is_complete(name):
    layout = find_layout(name)
    assert layout.name == name
    assert layout.description
    assert set(layout.keys) <= {field.name for field in dataclasses.fields(Source)} - {"path"}
    assert not layout.splits or "split" in layout.keys
    if not layout.has_classes:
        assert not layout.has_fixed_values
        with pytest.raises(NadpipeError, match="no classes"):
            layout.find_classes(Source(Path()))


def test_an_unknown_layout_is_reported_with_the_list_of_layouts():
    with pytest.raises(NadpipeError, match=r"no layout voc; .*table, tree, stanford_cars, folder"):
        find_layout("voc")


def test_the_folder_of_the_images_is_that_of_a_table_or_the_path_itself():
    assert LAYOUTS["table"].image_folder("s3://bucket/photos/all.csv") == "s3://bucket/photos"
    assert {layout.image_folder("a/b") for name, layout in LAYOUTS.items() if name != "table"} == {"a/b"}


def test_the_registry_imports_quickly():
    """The Snakefile imports it at every start."""
    code = (
        "import sys; import nadpipe.data.layouts, nadpipe.data.classes, nadpipe.data.dictionaries; "
        "print(sorted({'torch', 'zarr', 'pyarrow', 'pandas', 'scipy', 'open_clip'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


RECORD = """    Published(
        name="pets",
        description="a folder with images/ and trimaps/",
        splits=("all",),
        images="images",
        encodings=(Encoding("trimaps", ".png"),),
        class_file="voc21",
    ),
"""
USE = """
import sys
from pathlib import Path
import pandas as pd
import yaml
from nadpipe.cli import main
from nadpipe.config import check
config = check(yaml.safe_load(Path("config.yaml").read_text()))
assert config["datasets"]["pets"]["layout"] == "pets"
assert main(["index-images", "--layout", "pets", "--path", "pets", "--output", "images.parquet"]) == 0
assert main(["index-classes", "--layout", "pets", "--path", "pets", "--output", "classes.parquet"]) == 0
print(pd.read_parquet("images.parquet")["mask_path"].tolist(), len(pd.read_parquet("classes.parquet")))
"""


@pytest.mark.slow
def test_one_record_adds_a_layout(tmp_path):
    """The config accepts it, the stages read it, and the page of the configuration lists it."""
    checkout = Checkout(tmp_path)
    registry = tmp_path / "nadpipe" / "data" / "layouts.py"
    source = registry.read_text()
    registry.write_text(source.replace("_RECORDS = (\n", f"_RECORDS = (\n{RECORD}", 1))
    photograph(tmp_path / "pets/images/cat.jpg")
    mask(tmp_path / "pets/trimaps/cat.png", [1, 2])
    checkout.config["datasets"]["pets"] = {"layout": "pets", "path": "pets"}
    checkout.config["segmentation"]["datasets"] = ["pets"]
    checkout.write_config(checkout.config)

    def run(*arguments):
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", USE) == "['pets/trimaps/cat.png'] 22\n"
    page = run(str(ROOT / "docs" / "make_configuration_page.py"))
    assert "| `pets` | a folder with images/ and trimaps/ | all | 21 | `trimaps/*.png` |" in page
