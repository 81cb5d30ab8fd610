import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from nadpipe.circuit.label_values import IGNORED
from nadpipe.data import masks
from nadpipe.data.classes import (
    Classes,
    make_classes,
    parse_names,
    published_file,
    read_class_file,
    reduce_zero_label,
    rename,
    without_first,
)
from nadpipe.data.masks import read_mask
from nadpipe.errors import NadpipeError

THREE = make_classes(["cat", "dog, puppy", "sky"])
RED, GREEN, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 0)
CODED = Classes(("a", "b"), (("a",), ("b",)), ((0,), (1,)), (RED, GREEN), ignored_colours=(BLACK,))


@pytest.fixture
def mask(tmp_path):
    """Return a function that saves a mask and returns its path with that of a photograph."""
    photograph = str(tmp_path / "photograph.jpg")
    Image.new("RGB", (3, 2)).save(photograph)

    def save(values, dtype=np.uint8, name="m.png"):
        picture = values if isinstance(values, Image.Image) else Image.fromarray(np.array(values, dtype))
        picture.save(tmp_path / name)
        return str(tmp_path / name), photograph

    return save


# ------------------------------------------------------------------------------------------------------------- classes


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("cat", ("cat", ("cat",))),
        (" cat ,kitten, cat,", ("cat", ("cat", "kitten"))),
        ("pet: cat, dog", ("pet", ("cat", "dog"))),
    ],
)
def test_names_are_synonyms_after_an_optional_title(text, parsed):
    assert parse_names(text) == parsed


@pytest.mark.parametrize("text", ["", " , ", "pet:", ": cat", " "])
def test_a_class_needs_a_name(text):
    with pytest.raises(NadpipeError, match="no name of a class"):
        parse_names(text)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat"], "2 to 256 classes, not 1"),
        (["cat", "cat"], "more than one class is called cat"),
        (["a: cat, x", "b: dog, x"], "more than one class has the name x"),
        ([f"c{index}" for index in range(257)], "2 to 256 classes, not 257"),
    ],
)
def test_ambiguous_classes_are_refused(names, message):
    with pytest.raises(NadpipeError, match=message):
        make_classes(names)


def test_mask_values_are_positions_by_default():
    assert THREE.values == ((0,), (1,), (2,))
    assert THREE.ignored_values == (255,)
    assert len(set(THREE.colours)) == 3
    assert make_classes([f"c{index}" for index in range(256)]).ignored_values == ()  # 255 is a class


def test_a_reduced_zero_label_is_ignored():
    reduced = reduce_zero_label(THREE)
    assert reduced.values == ((1,), (2,), (3,))
    assert reduced.ignored_values == (0, 255)
    assert reduce_zero_label(make_classes([f"c{index}" for index in range(255)])).ignored_values == (0,)


def test_without_the_first_class_its_pixels_are_ignored():
    rest = without_first(THREE)
    assert rest.titles == ("dog", "sky")
    assert rest.values == ((1,), (2,))
    assert set(rest.ignored_values) == {0, 255}


def test_renaming_keeps_values_and_colours():
    renamed = rename(THREE, make_classes(["tomcat", "hound", "heaven, sky"]), "datasets.x.classes")
    assert renamed.titles == THREE.titles
    assert renamed.names[2] == ("heaven", "sky")
    with pytest.raises(NadpipeError, match=r"datasets\.x\.classes: 2 classes are given, the data set has 3"):
        rename(THREE, make_classes(["a", "b"]), "datasets.x.classes")


def test_class_files_hold_titles_values_and_colours(tmp_path):
    path = tmp_path / "classes.csv"
    path.write_text('title,names,values,red,green,blue\npet,"cat, dog",7 8,255,0,0\nsky,sky,3,0,0,255\n,,0 255,0,0,0\n')
    read = read_class_file(path)
    assert read == Classes(("pet", "sky"), (("cat", "dog"), ("sky",)), ((7, 8), (3,)), (RED, (0, 0, 255)), (0, 255), (BLACK,))
    path.write_text("names\ncat\ndog\n")
    assert read_class_file(path).values == ((0,), (1,))
    text = tmp_path / "classes.txt"
    text.write_text("cat, kitten\n\nsky\n")
    assert read_class_file(text) == make_classes(["cat, kitten", "sky"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("title\ncat\n", "classes.csv: no column `names` .*title"),
        ("names,values\ncat,0\ndog,x\n", "classes.csv: row 3: values must hold whole numbers"),
        ("names,values\ncat,0\ndog,0\n", "classes.csv: more than one class has the mask value 0"),
        ("names,red,green\ncat,0,0\ndog,1,1\n", "classes.csv: row 2: red, green, blue must hold whole numbers"),
        ("names,red,green,blue\ncat,0,0,0\ndog,,,\n", "classes.csv: some classes have no colour"),
        ("", "classes.csv: not a readable class file"),
        ("names\ncat\n", "classes.csv: 2 to 256 classes, not 1"),
    ],
)
def test_invalid_class_files_are_reported(tmp_path, content, message):
    (tmp_path / "classes.csv").write_text(content)
    with pytest.raises(NadpipeError, match=message):
        read_class_file(tmp_path / "classes.csv")
    with pytest.raises(NadpipeError, match=r"no\.csv: not a readable class file"):
        read_class_file(tmp_path / "no.csv")


@pytest.mark.parametrize(
    ("name", "count", "spots"),
    [
        ("voc21", 21, {0: "background", 15: "person", 20: "tvmonitor"}),
        ("context60", 60, {0: "background", 1: "aeroplane", 59: "wood"}),
        ("ade20k", 150, {1: "wall", 13: "person", 150: "flag"}),
        ("coco_stuff164k", 171, {0: "person", 12: "stop sign", 89: "toothbrush", 91: "banner", 181: "wood"}),
        ("coco_object", 81, {0: "person", 12: "stop sign", 89: "toothbrush", 91: "background", 181: "background"}),
        ("cityscapes", 19, {7: "road", 26: "car", 24: "person", 33: "bicycle"}),
    ],
)
def test_published_classes(name, count, spots):
    classes = read_class_file(published_file(name))
    assert len(classes.titles) == len(set(classes.titles)) == len(classes.colours) == count
    owner = {value: title for title, values in zip(classes.titles, classes.values, strict=True) for value in values}
    assert spots.items() <= owner.items()
    ignored = {"ade20k": (0,), "coco_object": ()}  # in coco_object, unlabelled pixels are background
    assert ignored.get(name, (255,))[0:1] == classes.ignored_values[-1:]


def test_the_raw_ids_of_coco_have_gaps():
    raw = read_class_file(published_file("coco_stuff164k"))
    raw_values = {value for values in raw.values for value in values}
    assert {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}.isdisjoint(raw_values)  # ids minus one of 11 unused kinds
    trained = read_class_file(published_file("coco_stuff164k"), "train_values")
    assert trained.values == tuple((index,) for index in range(171))
    assert trained.titles == raw.titles
    objects = read_class_file(published_file("coco_object"))
    assert {value for values in objects.values for value in values} == raw_values | {255}


# --------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize(("dtype", "name"), [(np.uint8, "m.png"), (np.uint16, "m.png"), (np.int32, "m.tiff")])
def test_masks_of_8_to_32_bits_are_read(mask, dtype, name):
    assert read_mask(*mask([[0, 2, 1], [255, 1, 0]], dtype, name), (2, 3), THREE).tolist() == [[0, 2, 1], [IGNORED, 1, 0]]


def test_masks_of_16_bits_may_hold_large_values(mask):
    classes = Classes(("a", "b"), (("a",), ("b",)), ((7000, 9), (40000,)), (RED, GREEN), (65535,))
    path = mask([[7000, 40000, 9], [65535, 9, 9]], np.uint16)
    assert read_mask(*path, (2, 3), classes).tolist() == [[0, 1, 0], [IGNORED, 0, 0]]


def test_indexed_masks_are_read_by_index_with_any_palette(mask):
    picture = Image.fromarray(np.array([[0, 2, 1], [255, 1, 0]], np.uint8), "L").convert("P")
    picture.putpalette([9, 9, 9] * 256)
    assert read_mask(*mask(picture), (2, 3), THREE).tolist() == [[0, 2, 1], [IGNORED, 1, 0]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_rgb_masks_are_read_by_colour(mask, mode):
    picture = Image.fromarray(np.array([[RED, GREEN, GREEN], [BLACK, RED, RED]], np.uint8)).convert(mode)
    assert read_mask(*mask(picture), (2, 3), CODED).tolist() == [[0, 1, 1], [IGNORED, 0, 0]]


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        (np.full((2, 3), 7), THREE, "m.png: mask holds 7; allowed are 0 to 2, 255"),
        (np.arange(6).reshape(2, 3) + 10, THREE, "m.png: mask holds 10, 11, 12, 13, 14; allowed"),
        (np.zeros((3, 2)), THREE, "m.png: mask is 2 × 3, its image 3 × 2 pixels"),
        (np.full((2, 3, 3), 7), CODED, r"m.png: RGB-coded mask holds the colours \(7, 7, 7\), which no class has"),
        (Image.new("F", (3, 2)).convert("LA"), THREE, "m.png: mask has mode LA"),
        (
            np.zeros((2, 3, 3)),
            Classes(("a", "b"), (("a",), ("b",)), ((0,), (1,)), (RED, RED)),
            r"m.png: mask is RGB-coded, but the colour \(255, 0, 0\) stands for more than one class",
        ),
    ],
)
def test_invalid_masks_are_reported(mask, values, classes, message):
    with pytest.raises(NadpipeError, match=message):
        read_mask(*mask(values), (2, 3), classes)


@pytest.mark.parametrize("block", [1, 7, 20])
def test_a_mask_is_looked_up_in_blocks_of_rows(tmp_path, monkeypatch, block):
    values = np.random.default_rng(0).integers(0, 3, (9, 6)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "mask.png")
    expected = read_mask(str(tmp_path / "mask.png"), "", (9, 6), THREE)
    monkeypatch.setattr(masks, "_BLOCK", block)
    np.testing.assert_array_equal(read_mask(str(tmp_path / "mask.png"), "", (9, 6), THREE), expected)


def test_unreadable_masks_are_reported(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    for name, message in {"bad.png": "not a readable mask", "none.png": "no such mask"}.items():
        with pytest.raises(NadpipeError, match=f"{name}: {message}"):
            read_mask(str(tmp_path / name), "", (2, 3), THREE)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("stored", [True, False])
def test_masks_may_have_the_orientation_of_the_stored_photograph(tmp_path, orientation, stored):
    """The size reveals a quarter turn. An upside-down or mirrored mask has the size of the upright image and stays as it is."""
    pixels = np.random.default_rng(0).integers(0, 3, (4, 6)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "photograph.jpg", exif=exif)
    with Image.open(tmp_path / "photograph.jpg") as photograph:
        size = ImageOps.exif_transpose(photograph).size[::-1]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))
    quarter = orientation >= 5
    Image.fromarray(pixels if stored and quarter else upright).save(tmp_path / "m.png")
    read = read_mask(str(tmp_path / "m.png"), str(tmp_path / "photograph.jpg"), size, THREE)
    assert (read == upright).all()


@given(st.data())
def test_every_value_becomes_its_class(tmp_path_factory, data):
    values = data.draw(st.lists(st.integers(0, 65535), min_size=3, max_size=40, unique=True))
    classes = Classes(("a", "b"), (("a",), ("b",)), (tuple(values[:1]), tuple(values[1:-1])), (RED, GREEN), (values[-1],))
    pixels = data.draw(st.lists(st.sampled_from(values), min_size=1, max_size=20))
    path = tmp_path_factory.mktemp("mask") / "m.png"
    Image.fromarray(np.array([pixels], np.uint16)).save(path)
    owner = dict.fromkeys(values, 1) | {values[0]: 0, values[-1]: IGNORED}
    assert read_mask(str(path), "", (1, len(pixels)), classes).tolist() == [[owner[value] for value in pixels]]
