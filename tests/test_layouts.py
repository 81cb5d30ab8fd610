"""Each layout in small, as its files lie when they were downloaded and unpacked, with the encodings of the real ones."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nadpipe.classes import IGNORED, read_mask
from nadpipe.errors import NadpipeError
from nadpipe.layouts import LAYOUTS, class_sources, find_classes, list_images

H, W = 4, 6


def photograph(path, size=(W, H), orientation=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)).save(path, exif=exif)


def mask(path, values, mode="L"):
    """A mask whose first pixels hold the values, the rest the last of them."""
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


def make(layout, root):
    """A data set of one or two images; gives the classes of the first mask's first pixels."""
    if layout in ("voc20", "voc21", "context59", "context60"):
        kind, masks = ("Segmentation", "SegmentationClass") if layout.startswith("voc") else ("SegmentationContext",) * 2
        masks = masks if layout.startswith("voc") else "SegmentationClassContext"
        for name in ("2007_000033", "2007_000042"):
            photograph(root / "JPEGImages" / f"{name}.jpg")
            mask(root / masks / f"{name}.png", [0, 1, 15, 255] if layout.startswith("voc") else [0, 1, 59, 255], "P")
        photograph(root / "JPEGImages" / "of_the_train_split.jpg")
        text(root / "ImageSets" / kind / "val.txt", "2007_000042\n2007_000033\n")
        last = "person" if layout.startswith("voc") else "wood"
        first = "background" if layout in ("voc21", "context60") else None
        return ["2007_000042", "2007_000033"], [first, "aeroplane", last, None]
    if layout == "ade20k":
        photograph(root / "images/validation/ADE_val_1.jpg", (H, W), orientation=6)
        photograph(root / "images/training/ADE_train_1.jpg")
        mask(root / "annotations/validation/ADE_val_1.png", [0, 1, 150])
        return ["ADE_val_1"], [None, "wall", "flag"]
    if layout in ("coco_stuff164k", "coco_object"):
        for name in ("000000000139", "000000000285"):
            photograph(root / f"images/val2017/{name}.jpg")
            mask(root / f"stuffthingmaps/val2017/{name}.png", [0, 12, 91, 181, 255])
        stuff = layout == "coco_stuff164k"
        return ["000000000139", "000000000285"], (
            ["person", "stop sign", "banner", "wood", None] if stuff else ["person", "stop sign", *["background"] * 3]
        )
    if layout == "cityscapes":
        for city in ("lindau", "frankfurt"):
            photograph(root / f"leftImg8bit/val/{city}/{city}_000000_000019_leftImg8bit.png")
            mask(root / f"gtFine/val/{city}/{city}_000000_000019_gtFine_labelIds.png", [7, 26, 33, 0, 3])
            mask(root / f"gtFine/val/{city}/{city}_000000_000019_gtFine_instanceIds.png", [7, 26001, 33], "I;16")
        return ["frankfurt/frankfurt_000000_000019_leftImg8bit", "lindau/lindau_000000_000019_leftImg8bit"], [
            *("road", "car", "bicycle", None, None)
        ]
    assert layout == "folder"
    photograph(root / "images/b.JPG", (H, W), orientation=8)
    photograph(root / "images/deeper/a.png")
    mask(root / "masks/b.png", [700, 1], "I;16")
    mask(root / "masks/deeper/a.png", [1, 1])
    text(root / "classes.csv", "names,values\ncat,1\nsky,700\n")
    return ["b", "deeper/a"], ["sky", "cat"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_masks_and_classes_are_found(tmp_path, layout):
    names, truth = make(layout, tmp_path)
    rows, classes = list_images(layout, tmp_path), find_classes(layout, tmp_path)
    assert list(rows.columns) == ["path", "mask_path", "group", "label"]
    assert [path.rsplit(".", 1)[0].endswith(name) for path, name in zip(rows["path"], names, strict=True)]
    read = read_mask(rows["mask_path"][0], rows["path"][0], (H, W), classes).ravel()[: len(truth)]
    assert [None if at == IGNORED else classes.titles[at] for at in read] == truth
    assert rows["group"].tolist() == (["frankfurt", "lindau"] if layout == "cityscapes" else [None] * len(rows))
    assert len(class_sources(layout, tmp_path)) == 1
    expected = {"voc20": 20, "context59": 59, "folder": 2, "coco_object": 81, "coco_stuff164k": 171, "cityscapes": 19}
    assert len(classes.titles) == expected.get(layout, len(classes.titles))


@pytest.mark.parametrize("layout", ["voc20", "context59"])
def test_without_background_the_numbers_of_classes_are_one_less(tmp_path, layout):
    make(layout, tmp_path)
    with_background = {"voc20": "voc21", "context59": "context60"}[layout]
    whole, rest = (find_classes(name, tmp_path) for name in (with_background, layout))
    assert whole.titles == ("background", *rest.titles)
    assert len(rest.titles) in (20, 59)


@pytest.mark.parametrize(
    ("layout", "masks", "end", "values", "titles"),
    [
        ("coco_stuff164k", "annotations/val2017", "_labelTrainIds.png", [0, 170, 255], ["person", "wood", None]),
        ("coco_stuff164k", "annotations/val2017", ".png", [0, 181, 255], ["person", "wood", None]),
        ("coco_object", "annotations/val2017", "_instanceTrainIds.png", [0, 80, 1], ["background", "toothbrush", "person"]),
    ],
)
def test_cocos_masks_may_be_converted_ones(tmp_path, layout, masks, end, values, titles):
    photograph(tmp_path / "images/val2017/1.jpg")
    path = mask(tmp_path / masks / f"1{end}", values)
    mask(tmp_path / "stuffthingmaps/val2017/1.png", [255])  # the folder named first counts
    classes = find_classes(layout, tmp_path)
    assert list_images(layout, tmp_path)["mask_path"].tolist() == [str(path)]
    read = read_mask(str(path), "", (H, W), classes).ravel()[:3]
    assert [None if at == IGNORED else classes.titles[at] for at in read] == titles


def test_cityscapes_masks_may_be_converted_ones(tmp_path):
    make("cityscapes", tmp_path)
    for city in ("lindau", "frankfurt"):
        mask(tmp_path / f"gtFine/val/{city}/{city}_000000_000019_gtFine_labelTrainIds.png", [0, 13, 18, 255])
    classes, rows = find_classes("cityscapes", tmp_path), list_images("cityscapes", tmp_path)
    read = read_mask(rows["mask_path"][0], rows["path"][0], (H, W), classes).ravel()[:4]
    assert [classes.titles[at] for at in read[:3]] == ["road", "car", "bicycle"]
    assert read[3] == IGNORED


def test_a_folders_masks_may_be_coloured(tmp_path):
    make("folder", tmp_path)
    text(tmp_path / "classes.csv", "names,red,green,blue\nsky,0,0,255\ncat,255,0,0\n,0,0,0\n")
    pixels = np.zeros((H, W, 3), np.uint8)
    pixels[0, :2] = (0, 0, 255), (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "masks/b.png")
    rows, classes = list_images("folder", tmp_path), find_classes("folder", tmp_path)
    assert read_mask(rows["mask_path"][0], rows["path"][0], (H, W), classes)[0, :3].tolist() == [0, 1, IGNORED]


def test_other_splits_are_asked_for_by_name(tmp_path):
    make("folder", tmp_path)
    text(tmp_path / "splits/few.txt", "deeper/a\n")
    assert list_images("folder", tmp_path, "few")["path"].tolist() == [str(tmp_path / "images/deeper/a.png")]
    make("ade20k", tmp_path / "ade")
    mask(tmp_path / "ade/annotations/training/ADE_train_1.png", [1])
    assert list_images("ade20k", tmp_path / "ade", "training")["path"].str.endswith("ADE_train_1.jpg").tolist() == [True]


REMOVED = [  # layout, what is taken away, what the message says
    ("voc21", "JPEGImages", "JPEGImages: missing; voc21 lies as the folder VOC2012 of VOCdevkit, with JPEGImages/"),
    ("voc21", "ImageSets/Segmentation/val.txt", "ImageSets/Segmentation/val.txt: missing; voc21 lies as"),
    ("voc20", "SegmentationClass", "SegmentationClass/2007_000042.png: no such mask; voc20 lies as"),
    ("voc20", "SegmentationClass/2007_000033.png", "2007_000033.png: no such mask; the split or the folder"),
    ("voc20", "JPEGImages/2007_000033.jpg", "2007_000033.jpg: no such image"),
    ("context60", "SegmentationClassContext", "mask; context60 lies as the folder VOC2010 of VOCdevkit"),
    ("ade20k", "images/validation", "images/validation: missing; ade20k lies as the folder ADEChallengeData2016"),
    ("ade20k", "images/validation/ADE_val_1.jpg", r"images/validation: no images \*.jpg for split validation"),
    (
        "coco_stuff164k",
        "stuffthingmaps",
        "139_labelTrainIds.png or .*139.png or .*stuffthingmaps/val2017/0+139.png: no such mask",
    ),
    ("cityscapes", "gtFine", "gtFine_labelTrainIds.png or .*_gtFine_labelIds.png: no such mask; cityscapes lies as"),
    ("folder", "masks", "masks: missing; folder lies as a folder with images/, masks/"),
    ("folder", "masks/b.png", "masks/b.png: no such mask"),
    ("folder", "images/b.JPG", None),
    ("folder", "classes.csv", "classes.csv: no class file; folder lies as"),
]


@pytest.mark.parametrize(("layout", "removed", "message"), REMOVED)
def test_what_is_missing_is_named_with_how_the_layout_should_look(tmp_path, layout, removed, message):
    make(layout, tmp_path)
    (tmp_path / removed).rename(tmp_path.with_name(f"{tmp_path.name}_away"))
    if message is None:
        assert len(list_images(layout, tmp_path)) == 1
        return
    with pytest.raises(NadpipeError, match=message) as error:
        list_images(layout, tmp_path)
        find_classes(layout, tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_one_level_too_high_is_told(tmp_path):
    make("voc21", tmp_path / "VOC2012")
    with pytest.raises(NadpipeError, match=f"set path to {tmp_path / 'VOC2012'}$"):
        list_images("voc21", tmp_path)
    with pytest.raises(NadpipeError, match="JPEGImages: missing"):
        list_images("voc21", tmp_path / "no such folder")


def test_splits_that_do_not_exist_are_named(tmp_path):
    make("voc21", tmp_path)
    with pytest.raises(NadpipeError, match="voc21: no split test; there are val, train, trainval"):
        list_images("voc21", tmp_path, "test")
    make("folder", tmp_path / "folder")
    with pytest.raises(NadpipeError, match=r"splits/val\.txt: missing; a split of a folder is a list of image names"):
        list_images("folder", tmp_path / "folder", "val")
    text(tmp_path / "folder/splits/val.txt", "b\nzebra\n")
    with pytest.raises(NadpipeError, match=r"zebra\.\*: no such image, but .*val.txt names it"):
        list_images("folder", tmp_path / "folder", "val")


def test_rows_are_a_manifest(tmp_path):
    make("voc21", tmp_path)
    rows = list_images("voc21", tmp_path)
    assert isinstance(rows, pd.DataFrame)
    assert rows["label"].tolist() == [None, None]
