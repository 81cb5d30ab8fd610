"""Data sets with masks as they lie on disk when they were downloaded and unpacked: which images, which masks, which classes."""

import dataclasses
from pathlib import Path

import pandas as pd

from nadpipe.classes import Classes, published_file, read_class_file, without_first
from nadpipe.datasets import IMAGE_SUFFIXES
from nadpipe.errors import NadpipeError


@dataclasses.dataclass(frozen=True)
class Encoding:
    """One way in which a layout's masks are written: where they lie, how their names end, and which values they hold."""

    masks: str  # folder below the path; {split} stands for the split
    end: str  # of a mask's name, behind the image's
    values: str = "values"  # column of the class file


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a published data set has its images, masks and split files, below the path that the user gives."""

    about: str  # what the path is, and how it looks
    images: str  # folder; {split} stands for the split
    image_end: str
    encodings: tuple[Encoding, ...]  # the first whose masks are there counts
    classes: str  # class file
    splits: tuple[str, ...]
    split_file: str | None = None  # list of image names; without one, all images of the split's folder
    background: bool = True  # False: the first class of the file does not count


_VOC = Layout(
    about="the folder VOC2012 of VOCdevkit, with JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/<split>.txt",
    images="JPEGImages",
    image_end=".jpg",
    encodings=(Encoding("SegmentationClass", ".png"),),
    classes="voc21",
    splits=("val", "train", "trainval"),
    split_file="ImageSets/Segmentation/{split}.txt",
)
_CONTEXT = Layout(
    about="the folder VOC2010 of VOCdevkit, with JPEGImages/, SegmentationClassContext/ (label maps with 0 to 59, as "
    "mmsegmentation's pascal_context.py writes them) and ImageSets/SegmentationContext/<split>.txt",
    images="JPEGImages",
    image_end=".jpg",
    encodings=(Encoding("SegmentationClassContext", ".png"),),
    classes="context60",
    splits=("val", "train"),
    split_file="ImageSets/SegmentationContext/{split}.txt",
)
_COCO = (
    "a folder with images/<split>/ and the masks in annotations/<split>/ or stuffthingmaps/<split>/, split val2017 or train2017"
)

LAYOUTS: dict[str, Layout | None] = {
    "folder": None,  # images/, masks/ and a class file
    "voc21": _VOC,
    "voc20": dataclasses.replace(_VOC, background=False),
    "context60": _CONTEXT,
    "context59": dataclasses.replace(_CONTEXT, background=False),
    "ade20k": Layout(
        about="the folder ADEChallengeData2016, with images/<split>/ and annotations/<split>/, split validation or training",
        images="images/{split}",
        image_end=".jpg",
        encodings=(Encoding("annotations/{split}", ".png"),),
        classes="ade20k",
        splits=("validation", "training"),
    ),
    "coco_stuff164k": Layout(
        about=_COCO,
        images="images/{split}",
        image_end=".jpg",
        encodings=(
            Encoding("annotations/{split}", "_labelTrainIds.png", "train_values"),
            Encoding("annotations/{split}", ".png"),
            Encoding("stuffthingmaps/{split}", ".png"),
        ),
        classes="coco_stuff164k",
        splits=("val2017", "train2017"),
    ),
    # In the converted masks everything but the 80 kinds of objects is background; stuffthingmaps says the same of its stuff and
    # of what it leaves unlabelled.
    "coco_object": Layout(
        about=_COCO,
        images="images/{split}",
        image_end=".jpg",
        encodings=(
            Encoding("annotations/{split}", "_instanceTrainIds.png", "train_values"),
            Encoding("annotations/{split}", ".png"),
            Encoding("stuffthingmaps/{split}", ".png"),
        ),
        classes="coco_object",
        splits=("val2017", "train2017"),
    ),
    "cityscapes": Layout(
        about="a folder with leftImg8bit/<split>/<city>/ and gtFine/<split>/<city>/",
        images="leftImg8bit/{split}",
        image_end="_leftImg8bit.png",
        encodings=(
            Encoding("gtFine/{split}", "_gtFine_labelTrainIds.png", "train_values"),
            Encoding("gtFine/{split}", "_gtFine_labelIds.png"),
        ),
        classes="cityscapes",
        splits=("val", "train"),
    ),
}
_CLASS_FILES = ("classes.csv", "classes.txt")
_FOLDER = "a folder with images/, masks/ (masks of the same names, .png) and classes.csv or classes.txt"


def list_images(layout: str, root: Path, split: str | None = None) -> pd.DataFrame:
    """Manifest rows, without sizes, of a layout: path, mask_path, group (the city of Cityscapes, else none) and label (none),
    in the order of the split file, or sorted by path.

    split: the layout's validation split unless given; of `folder`, the name of a list of images in splits/, or all images.
    Raises NadpipeError that says which path is missing and how the layout should look.
    """
    if LAYOUTS[layout] is None:
        return _rows(_folder_images(root, split))
    found, _ = _find(layout, root, split)
    return _rows(found)


def find_classes(layout: str, root: Path, split: str | None = None) -> Classes:
    """A layout's classes with the values that the masks there hold: those as downloaded, or as mmsegmentation converts them."""
    known = LAYOUTS[layout]
    if known is None:
        return read_class_file(_class_file(root))
    _, encoding = _find(layout, root, split)
    classes = read_class_file(published_file(known.classes), encoding.values)
    return classes if known.background else without_first(classes)


def class_sources(layout: str, root: Path) -> list[Path]:
    """The files that `find_classes` reads classes from, as far as they are there."""
    known = LAYOUTS[layout]
    files = [root / name for name in _CLASS_FILES] if known is None else [published_file(known.classes)]
    return [path for path in files if path.is_file()]


Image = tuple[str | None, Path, Path]  # group, image, mask


def _find(layout: str, root: Path, split: str | None) -> tuple[list[Image], Encoding]:
    """The images of a split, each with its mask, and how the masks are written."""
    known = LAYOUTS[layout]
    split = split or known.splits[0]
    if split not in known.splits:
        raise NadpipeError(f"{layout}: no split {split}; there are {', '.join(known.splits)}")
    images = _existing(root, known.images.format(split=split), f"{layout} lies as {known.about}")
    if known.split_file is None:
        stems = sorted(str(path.relative_to(images))[: -len(known.image_end)] for path in images.rglob(f"*{known.image_end}"))
    else:
        listed = _existing(root, known.split_file.format(split=split), f"{layout} lies as {known.about}")
        stems = listed.read_text(encoding="utf-8").split()
    if not stems:
        raise NadpipeError(f"{images}: no images *{known.image_end} for split {split}; {layout} lies as {known.about}")
    folders = [root / encoding.masks.format(split=split) for encoding in known.encodings]
    ways = list(zip(folders, known.encodings, strict=True))
    there = [way for way in ways if (way[0] / f"{stems[0]}{way[1].end}").is_file()]
    if not there:
        expected = " or ".join(dict.fromkeys(f"{folder}/{stems[0]}{encoding.end}" for folder, encoding in ways))
        raise NadpipeError(f"{expected}: no such mask; {layout} lies as {known.about}")
    folder, encoding = there[0]
    found = [
        (stem.split("/")[0] if "/" in stem else None, images / f"{stem}{known.image_end}", folder / f"{stem}{encoding.end}")
        for stem in stems
    ]
    _check(found)
    return found, encoding


def _folder_images(root: Path, split: str | None) -> list[Image]:
    images, masks = (_existing(root, name, f"folder lies as {_FOLDER}") for name in ("images", "masks"))
    paths = sorted(path for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if split is not None:
        listed = _existing(root, f"splits/{split}.txt", "a split of a folder is a list of image names without their endings")
        named = {str(path.relative_to(images).with_suffix("")): path for path in paths}
        wanted = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
        missing = [name for name in wanted if name not in named]
        if missing:
            raise NadpipeError(f"{images / missing[0]}.*: no such image, but {listed} names it")
        paths = [named[name] for name in wanted]
    if not paths:
        raise NadpipeError(f"{images}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder or below it")
    found = [(None, path, (masks / path.relative_to(images)).with_suffix(".png")) for path in paths]
    _check(found)
    return found


def _class_file(root: Path) -> Path:
    for name in _CLASS_FILES:
        if (root / name).is_file():
            return root / name
    raise NadpipeError(f"{root / _CLASS_FILES[0]}: no class file; folder lies as {_FOLDER}")


def _existing(root: Path, name: str, about: str) -> Path:
    if (root / name).exists():
        return root / name
    inner = next((path for path in root.glob("*/") if (path / name).exists()), None) if root.is_dir() else None
    hint = f"set path to {inner}" if inner else about
    raise NadpipeError(f"{root / name}: missing; {hint}")


def _check(found: list[Image]) -> None:
    """Every image and mask must be there."""
    for _, image, mask in found:
        for path, what in ((image, "image"), (mask, "mask")):
            if not path.is_file():
                raise NadpipeError(f"{path}: no such {what}; the split or the folder beside it has it")


def _rows(found: list[Image]) -> pd.DataFrame:
    rows = [{"path": str(image), "mask_path": str(mask), "group": group, "label": None} for group, image, mask in found]
    return pd.DataFrame(rows, dtype=object)
