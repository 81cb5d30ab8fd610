"""Registry of the layouts of data sets on disk, each with readers of its images, masks and classes.

`LAYOUTS` has one record per layout. Config checks, docs and stages read the records, so a new layout needs a change only here.
The Snakefile imports this module at every start: pandas and scipy are imported where images are listed.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nadpipe.data.classes import Classes, published_file, read_class_file, without_first
from nadpipe.data.folders import walk_files
from nadpipe.data.listing import count_rows, folder_fingerprint, list_tree, read_columns, table_fingerprint
from nadpipe.data.text_files import read_lines
from nadpipe.errors import NadpipeError, printable, visible

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
IGNORED_SUFFIXES = (  # of images that are not read; they are reported
    *(".apng", ".arw", ".avif", ".cr2", ".cr3", ".dng", ".eps", ".exr", ".gif", ".hdr", ".heic", ".heif", ".ico", ".j2k"),
    *(".jfif", ".jp2", ".jpe", ".jpx", ".jxl", ".nef", ".orf", ".pbm", ".pcx", ".pgm", ".pnm", ".psd", ".raf", ".rw2", ".tga"),
)
_CLASS_FILES = ("classes.csv", "classes.txt")

Rows = Any  # a pandas.DataFrame with path, mask_path, group, label, and columns of the source


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set on disk: its path, and the config keys that layouts read."""

    path: Path
    split: str | None = None
    path_column: str = "path"
    mask_column: str | None = None
    group_column: str | None = None
    label_column: str | None = None


SOURCE_KEYS = tuple(field.name for field in dataclasses.fields(Source) if field.name != "path")


Property = Literal["masks", "groups", "labels"]


class ListedImage(NamedTuple):
    """An image that a layout lists."""

    path: Path
    mask_path: Path | None = None
    group: str | None = None
    label: str | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """A way to store data sets on disk. Subclasses list the images and find the classes."""

    name: str
    description: str  # of the path, and of the files in it; for docs and messages
    keys: tuple[str, ...] = ()  # keys of `Source` that this layout reads, in addition to the path
    splits: tuple[str, ...] = ()  # allowed splits, the default first; empty if the layout has none, or allows any name
    is_file: bool = False  # True if the path is a file next to the images, not their folder
    has_classes: bool = False  # False if the user must name the classes
    has_fixed_values: bool = False  # True if the user can rename the classes, but not change their mask values

    def list_images(self, source: Source) -> Rows:
        """Return the rows of a manifest without sizes. Raises NadpipeError if files are missing."""
        raise NotImplementedError

    def ignored_images(self, source: Source) -> list[Path]:
        """Return the images of a data set whose format is not read, sorted by path."""
        return []

    def find_classes(self, source: Source) -> Classes:
        """Return the classes with their values in the source's masks. Raises NadpipeError if the layout has no classes."""
        raise NadpipeError(f"layout {self.name}: no classes of its own; list them or name a class file")

    def class_files(self, root: Path) -> list[Path]:
        """Return the existing files from which `find_classes` reads class names."""
        return []

    def lacks(self, what: Property, dataset: Mapping[str, Any]) -> str | None:
        """Return the key that would give the images masks, groups or labels, and what to do; None if they have them.

        dataset: the data set's section of the config. Files at a URL, and files that do not exist yet, are not looked at.
        Raises NadpipeError if files are unreadable.
        """
        return f"layout: {self.name} has no {what}; use a layout that has them, such as a table"

    def group_names(self, source: Source) -> AbstractSet[str] | None:
        """Return the groups of a data set on disk without repetition, or None if only `list_images` can tell.

        An empty name stands for images without a group. Raises NadpipeError as `list_images` does.
        """
        return None

    def count_images(self, source: Source) -> int | None:
        """Return how many images a data set on disk lists, or None if only `list_images` can tell.

        It opens no image. Raises NadpipeError as `list_images` does.
        """
        return None

    def fingerprint(self, source: Source) -> str:
        """Return a hash of the names, sizes and times of the files of a data set on disk. No image is opened."""
        return folder_fingerprint(source.path)

    def image_folder(self, path: str) -> str:
        """Return the folder that contains all images of a data set, from its path or URL."""
        return path.rpartition("/")[0] if self.is_file else path

    def expected(self) -> str:
        """Return a description of the expected files, for messages about missing ones."""
        return f"expected the {self.name} layout: {self.description}"

    def chosen_split(self, split: str | None) -> str:
        """Return the split, by default the layout's first. Raises NadpipeError if the layout has no such split."""
        if split is not None and split not in self.splits:
            raise NadpipeError(f"{self.name}: no split {split}; choose {', '.join(self.splits)}")
        return self.splits[0] if split is None else split

    def existing(self, root: Path, name: str) -> Path:
        """Return root / name. Raises NadpipeError if it is missing; if a folder in the root has it, the message names it."""
        if (root / name).exists():
            return root / name
        inner = next((path for path in root.glob("*/") if (path / name).exists()), None) if root.is_dir() else None
        raise NadpipeError(f"{root / name}: missing; {f'set path to {inner}' if inner else self.expected()}")


class Table(Layout):
    """A table with one row per image."""

    def list_images(self, source: Source) -> Rows:
        """Return the rows of the table."""
        from nadpipe.data.tables import read_table

        columns = (source.path_column, source.mask_column, source.group_column, source.label_column)
        return read_table(source.path, *columns)

    def lacks(self, what: Property, dataset: Mapping[str, Any]) -> str | None:
        """Return the key that would name the column, or that names one without differences; None if there are several values.

        A group is required for each image, a label is not.
        """
        key = f"{what.removesuffix('s')}_column"
        column, table = dataset[key], dataset["path"]
        if column is None:
            return f"{key}: not set; name the column with the {what}"
        if what == "masks" or not _is_on_disk(table):
            return None
        [values] = read_columns(Path(table), [column])
        if what == "groups" and "" in values:
            return f"{key}: column {column} of {table} is empty in row {values.index('') + 1}; fill it"
        return _too_few(f"{key}: column {column} of {table}", what, set(values) - {""})

    def group_names(self, source: Source) -> AbstractSet[str] | None:
        """Return the values of the group column, if it is set."""
        return None if source.group_column is None else set(*read_columns(source.path, [source.group_column]))

    def count_images(self, source: Source) -> int:
        """Return the number of rows."""
        return count_rows(source.path)

    def fingerprint(self, source: Source) -> str:
        """Return a hash of the sizes and times of the images and masks that the table names."""
        columns = [source.path_column] if source.mask_column is None else [source.path_column, source.mask_column]
        return table_fingerprint(source.path, columns)


class Tree(Layout):
    """A folder with images at any depth."""

    def list_images(self, source: Source) -> Rows:
        """Return the images sorted by path; the group is the first folder below the path, the label is the last."""
        folders = {path: path.relative_to(source.path).parts[:-1] for path in _images_in(source.path)}
        return _as_rows(
            [
                ListedImage(path, group=names[0] if names else None, label=names[-1] if names else None)
                for path, names in folders.items()
            ]
        )

    def ignored_images(self, source: Source) -> list[Path]:
        """Return the images at any depth whose format is not read."""
        return _ignored_in(source.path)

    def lacks(self, what: Property, dataset: Mapping[str, Any]) -> str | None:
        """Return that folders would give groups and labels; None if images are in several folders.

        A group is required for each image, a label is not.
        """
        path = dataset["path"]
        if what == "masks":
            return super().lacks(what, dataset)
        if not _is_on_disk(path):
            return None
        listing = list_tree(Path(path), IMAGE_SUFFIXES)
        if not listing.groups:
            return f"path: {path} has no folders with images, which would be the {what}"
        if what == "groups" and listing.outside is not None:
            return f"path: {path}/{listing.outside} is in no folder, which would be its group; move it to one"
        return _too_few(f"path: {path}", what, listing.groups if what == "groups" else listing.labels)

    def group_names(self, source: Source) -> AbstractSet[str]:
        """Return the first folders below the path that contain images."""
        listing = list_tree(source.path, IMAGE_SUFFIXES)
        return listing.groups if listing.outside is None else {*listing.groups, ""}

    def count_images(self, source: Source) -> int:
        """Return the number of images at any depth."""
        return list_tree(source.path, IMAGE_SUFFIXES).images


class StanfordCars(Layout):
    """Stanford Cars as published."""

    def lacks(self, what: Property, dataset: Mapping[str, Any]) -> str | None:
        """Return that there are no masks; None for groups and labels."""
        return super().lacks(what, dataset) if what == "masks" else None

    def count_images(self, source: Source) -> None:
        """Return None, because only the annotations tell. Raises NadpipeError if the names of the classes are missing."""
        self.existing(source.path, "devkit/cars_meta.mat")

    def list_images(self, source: Source) -> Rows:
        """Return the images of a split; the label is the class, the group is the year at the end of the class name."""
        from nadpipe.data.tables import read_cars

        return read_cars(source.path, self.chosen_split(source.split), self.expected())


class Folder(Layout):
    """A folder with images, optionally masks, and a class file."""

    def list_images(self, source: Source) -> Rows:
        """Return all images sorted by path, or the images of splits/<split>.txt in its order.

        Without a folder of masks, no image has a mask.
        """
        images, masks = self.existing(source.path, "images"), source.path / "masks"
        paths = _images_in(images)
        if source.split is not None:
            split_file = self.existing(source.path, f"splits/{source.split}.txt")
            by_name = {str(path.relative_to(images).with_suffix("")): path for path in paths}
            names = read_lines(split_file)
            missing = [name for name in names if name not in by_name]
            if missing:
                raise NadpipeError(f"{images / missing[0]}.*: no such image; add it, or remove its name from {split_file}")
            paths = [by_name[name] for name in names]
        if not masks.exists():
            return _as_rows([ListedImage(path) for path in paths])
        return _as_rows(_checked([ListedImage(path, (masks / path.relative_to(images)).with_suffix(".png")) for path in paths]))

    def ignored_images(self, source: Source) -> list[Path]:
        """Return the images at any depth whose format is not read; none if a split lists the images."""
        return [] if source.split is not None else _ignored_in(self.existing(source.path, "images"))

    def count_images(self, source: Source) -> int:
        """Return the number of all images, or of the names in splits/<split>.txt."""
        if source.split is None:
            return list_tree(self.existing(source.path, "images"), IMAGE_SUFFIXES).images
        return len(read_lines(self.existing(source.path, f"splits/{source.split}.txt")))

    def fingerprint(self, source: Source) -> str:
        """Return a hash of the names, sizes and times of images, masks and splits. Class files decide nothing about images."""
        folders = [source.path / name for name in ("images", "masks", "splits")]
        return " ".join(folder_fingerprint(folder) for folder in folders if folder.exists())

    def find_classes(self, source: Source) -> Classes:
        """Return the classes of the class file."""
        files = self.class_files(source.path)
        if not files:
            raise NadpipeError(f"{source.path / _CLASS_FILES[0]}: no class file; {self.expected()}")
        return read_class_file(files[0])

    def class_files(self, root: Path) -> list[Path]:
        """Return the class files in the folder; the first one counts."""
        return [root / name for name in _CLASS_FILES if (root / name).is_file()]

    def lacks(self, what: Property, dataset: Mapping[str, Any]) -> str | None:
        """Return that there are no groups or labels, or no folder of masks; None if there are masks, or if it is at a URL."""
        path = dataset["path"]
        if what != "masks":
            return super().lacks(what, dataset)
        return None if "://" in path or (Path(path) / "masks").exists() else f"path: {path} has no folder masks; add the masks"


@dataclasses.dataclass(frozen=True)
class Encoding:
    """A way to write the masks of a published data set."""

    masks: str  # folder below the path; {split} stands for the split
    suffix: str  # of a mask's name, in place of the image's suffix
    values: str = "values"  # column of the class file with the mask values


@dataclasses.dataclass(frozen=True)
class Published(Layout):
    """A published segmentation data set, as downloaded and unpacked, or as mmsegmentation converts it."""

    keys: tuple[str, ...] = ("split",)
    has_classes: bool = True
    has_fixed_values: bool = True
    images: str = ""  # folder below the path; {split} stands for the split
    image_suffix: str = ".jpg"
    encodings: tuple[Encoding, ...] = ()  # the first one whose masks exist counts
    class_file: str = ""  # name of a class file in the package
    split_file: str | None = None  # list of image names; None for all images in the folder of the split
    background: bool = True  # False to ignore the first class of the file
    grouped: bool = False  # True if the split's folder has folders, such as the cities of Cityscapes

    def list_images(self, source: Source) -> Rows:
        """Return the images of a split with their masks, in the order of the split file or sorted by path.

        The group is the first folder below the split's folder (the city of Cityscapes).
        """
        images, stems = self._stems(source)
        masks, encoding = self._encoding(source, stems[0])
        return _as_rows(
            _checked(
                [
                    ListedImage(
                        path=images / f"{stem}{self.image_suffix}",
                        mask_path=masks / f"{stem}{encoding.suffix}",
                        group=stem.split("/")[0] if "/" in stem else None,
                    )
                    for stem in stems
                ]
            )
        )

    def count_images(self, source: Source) -> int:
        """Return the number of images of a split."""
        return len(self._stems(source)[1])

    def find_classes(self, source: Source) -> Classes:
        """Return the published classes, with the mask values of the encoding that the source has."""
        _, stems = self._stems(source)
        _, encoding = self._encoding(source, stems[0])
        classes = read_class_file(published_file(self.class_file), encoding.values)
        return classes if self.background else without_first(classes)

    def class_files(self, root: Path) -> list[Path]:
        """Return the package's class file."""
        return [published_file(self.class_file)]

    def lacks(self, what: Property, dataset: Mapping[str, Any]) -> str | None:
        """Return that there are no labels, or no groups if images lie in one folder; None for masks."""
        return None if what == "masks" or (what == "groups" and self.grouped) else super().lacks(what, dataset)

    def _stems(self, source: Source) -> tuple[Path, list[str]]:
        """Return the folder of the split's images, and the images' paths in it without suffix."""
        split = self.chosen_split(source.split)
        images = self.existing(source.path, self.images.format(split=split))
        if self.split_file is None:
            names = [name for name, _ in walk_files(images)]
            stems = sorted(name.removesuffix(self.image_suffix) for name in names if name.endswith(self.image_suffix))
        else:
            lines = read_lines(self.existing(source.path, self.split_file.format(split=split)))
            stems = [stem for line in lines for stem in line.split()]
        if not stems:
            raise NadpipeError(f"{images}: no images *{self.image_suffix} for split {split}; {self.expected()}")
        return images, stems

    def _encoding(self, source: Source, stem: str) -> tuple[Path, Encoding]:
        """Return the folder of the masks and their encoding, which the mask of the first image decides."""
        split = self.chosen_split(source.split)
        candidates = [(source.path / encoding.masks.format(split=split), encoding) for encoding in self.encodings]
        for folder, encoding in candidates:
            if (folder / f"{stem}{encoding.suffix}").is_file():
                return folder, encoding
        masks = " or ".join(dict.fromkeys(f"{folder}/{stem}{encoding.suffix}" for folder, encoding in candidates))
        raise NadpipeError(f"{masks}: no such mask; {self.expected()}")


def _coco(name: str, converted: str) -> Published:
    """Return the record of a set of COCO's classes. converted: end of the names of converted masks, which are found first."""
    return Published(
        name=name,
        description="a folder with images/<split>/, and masks in annotations/<split>/ or stuffthingmaps/<split>/",
        splits=("val2017", "train2017"),
        images="images/{split}",
        encodings=(
            Encoding("annotations/{split}", converted, "train_values"),
            Encoding("annotations/{split}", ".png"),
            Encoding("stuffthingmaps/{split}", ".png"),
        ),
        class_file=name,
    )


_VOC21 = Published(
    name="voc21",
    description="VOCdevkit/VOC2012 with JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/<split>.txt",
    splits=("val", "train", "trainval"),
    images="JPEGImages",
    encodings=(Encoding("SegmentationClass", ".png"),),
    class_file="voc21",
    split_file="ImageSets/Segmentation/{split}.txt",
)
_CONTEXT60 = Published(
    name="context60",
    description="VOCdevkit/VOC2010 with JPEGImages/, SegmentationClassContext/ (label maps with values 0 to 59, as written by "
    "mmsegmentation's pascal_context.py) and ImageSets/SegmentationContext/<split>.txt",
    splits=("val", "train"),
    images="JPEGImages",
    encodings=(Encoding("SegmentationClassContext", ".png"),),
    class_file="context60",
    split_file="ImageSets/SegmentationContext/{split}.txt",
)
_RECORDS = (
    Table(
        name="table",
        description="a CSV or Parquet table with one row per image; image paths are relative to its folder",
        keys=("path_column", "mask_column", "group_column", "label_column"),
        is_file=True,
    ),
    Tree(
        name="tree",
        description="a folder with images at any depth; the first folder is the group, the last is the label",
    ),
    StanfordCars(
        name="stanford_cars",
        description="a folder with devkit/cars_meta.mat, devkit/cars_train_annos.mat, cars_test_annos_withlabels.mat, "
        "cars_train/ and cars_test/",
        keys=("split",),
        splits=("train", "test"),
    ),
    Folder(
        name="folder",
        description="a folder with images/, classes.csv or classes.txt, and optionally masks/ (.png files with the images' "
        "names) and splits/<split>.txt (image names without suffix)",
        keys=("split",),
        has_classes=True,
    ),
    dataclasses.replace(_VOC21, name="voc20", background=False),
    _VOC21,
    dataclasses.replace(_CONTEXT60, name="context59", background=False),
    _CONTEXT60,
    Published(
        name="ade20k",
        description="ADEChallengeData2016 with images/<split>/ and annotations/<split>/",
        splits=("validation", "training"),
        images="images/{split}",
        encodings=(Encoding("annotations/{split}", ".png"),),
        class_file="ade20k",
    ),
    _coco("coco_stuff164k", "_labelTrainIds.png"),
    # Everything except the 80 object classes is background in the converted masks. In stuffthingmaps, these are all stuff
    # classes and all unlabelled pixels.
    _coco("coco_object", "_instanceTrainIds.png"),
    Published(
        name="cityscapes",
        description="a folder with leftImg8bit/<split>/<city>/ and gtFine/<split>/<city>/",
        splits=("val", "train"),
        images="leftImg8bit/{split}",
        image_suffix="_leftImg8bit.png",
        encodings=(
            Encoding("gtFine/{split}", "_gtFine_labelTrainIds.png", "train_values"),
            Encoding("gtFine/{split}", "_gtFine_labelIds.png"),
        ),
        class_file="cityscapes",
        grouped=True,
    ),
)
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _RECORDS}


def find_layout(name: str) -> Layout:
    """Return the layout of that name. Raises NadpipeError if there is none; the message lists all names."""
    if name not in LAYOUTS:
        raise NadpipeError(f"--layout: no layout {name}; choose {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def _images_in(folder: Path) -> list[Path]:
    """Return the images at any depth of a folder, sorted by path.

    Raises NadpipeError if there are none, or if a folder cannot be read.
    """
    paths = sorted(folder / name for name, _ in walk_files(folder) if name.lower().endswith(IMAGE_SUFFIXES))
    if not paths:
        ignored = len(_ignored_in(folder))
        others = f", only {ignored} in formats that are not read" if ignored else ""
        raise NadpipeError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}) at any depth{others}; correct the path")
    return paths


def _ignored_in(folder: Path) -> list[Path]:
    """Return the images at any depth of a folder in formats that are not read, sorted by path."""
    return sorted(folder / name for name, _ in walk_files(folder) if name.lower().endswith(IGNORED_SUFFIXES))


def _checked(images: list[ListedImage]) -> list[ListedImage]:
    """Return the images if all of them and their masks exist. Otherwise raise NadpipeError with the first missing file."""
    for image in images:
        if not image.path.is_file():
            raise NadpipeError(f"{image.path}: no such image; add it, or remove its name from the split file")
        if image.mask_path is not None and not image.mask_path.is_file():
            raise NadpipeError(f"{image.mask_path}: no such mask; add it, or remove its image from the split")
    return images


def _is_on_disk(path: str) -> bool:
    """Return False for a URL, and for a path that the workflow has not made yet."""
    return Path(path).exists()


def _too_few(where: str, what: Property, values: Collection[str]) -> str | None:
    """Return that fewer than two groups or labels leave nothing to compare; None for at least two."""
    if len(values) > 1:
        return None
    only = f"only {printable(next(iter(values)))}" if values else "none"
    return f"{where} gives {only} as {what}; at least two are needed"


def _as_rows(images: Sequence[ListedImage]) -> Rows:
    """Return one row per image, with paths as text. Raises NadpipeError for a path that is no text."""
    import pandas as pd

    texts = [tuple(None if value is None else str(value) for value in image) for image in images]
    for name in (str(image.path) for image in images):
        if not name.isascii() and name != name.encode("utf-8", "replace").decode():
            raise NadpipeError(f"{visible(name)}: its name is not UTF-8; rename it")
    return pd.DataFrame(texts, columns=ListedImage._fields, dtype=object)
