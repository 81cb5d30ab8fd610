import numpy as np
import pytest
from PIL import Image

from nadpipe.circuit.label_values import IGNORED
from nadpipe.errors import NadpipeError
from nadpipe.pages.pictures import (
    ERROR_COLOURS,
    colour_bar,
    contact_sheet,
    error_map,
    heat_image,
    heat_overlay,
    heat_steps,
    overlay,
    panel,
    shrink,
)
from nadpipe.store.label_maps import class_colours, indexed_image, read_label_map, write_label_map

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.mark.parametrize("colours", [None, [(index, 255 - index, 7) for index in range(200)]])
def test_label_maps_reload_to_the_same_classes(tmp_path, colours):
    classes = np.random.default_rng(0).integers(0, 200, (9, 13))
    indexed_image(classes, colours).save(tmp_path / "l.png")
    with Image.open(tmp_path / "l.png") as image:
        assert image.mode == "P"
        assert (np.asarray(image) == classes).all()
        if colours:
            assert np.asarray(image.convert("RGB"))[2, 5].tolist() == list(colours[classes[2, 5]])


def test_a_label_map_is_read_from_the_shard_that_has_it(tmp_path):
    classes = np.random.default_rng(0).integers(0, 3, (4, 5))
    for shard in ("0", "1"):
        (tmp_path / shard / "nad").mkdir(parents=True)
    write_label_map(tmp_path / "1", "nad", 7, classes, [RED, BLUE, RED])
    shards = [tmp_path / "0", tmp_path / "1"]
    assert (read_label_map(shards, "nad", 7) == classes).all()
    with pytest.raises(NadpipeError, match=r"nad/000008\.png: .* none of the given folders"):
        read_label_map(shards, "nad", 8)


def test_class_colours_differ():
    colours = class_colours(171)
    assert len(np.unique(colours, axis=0)) == 171
    near = np.abs(colours[1:].astype(int) - colours[:-1]).max(1)
    assert near.min() > 60


def test_overlays_tint_classes_and_leave_ignored_pixels_alone():
    image = Image.new("RGB", (3, 1), (10, 20, 30))
    drawn = np.asarray(overlay(image, np.array([[0, -1, 1]]), [RED, BLUE]))
    assert drawn[0, 1].tolist() == [10, 20, 30]
    assert drawn[0, 0].argmax() == 0
    assert drawn[0, 2].argmax() == 2


def test_large_pictures_are_shrunk_and_small_ones_kept():
    assert shrink(Image.new("RGB", (400, 100)), 100).size == (100, 25)
    assert shrink(Image.new("RGB", (40, 10)), 100).size == (40, 10)
    assert shrink(Image.new("RGB", (4000, 1)), 100).size == (100, 1)


def colours_of(picture, box=None):
    region = picture if box is None else picture.crop(box)
    return {colour for _, colour in region.getcolors(1 << 24)}


def test_a_panel_shows_every_picture_over_a_legend_of_colours():
    shades = {f"picture {red}": Image.new("RGB", (300, 200), (red, 9, 9)) for red in range(7)}
    drawn = panel(shades, {"fish": RED, "sky": BLUE}, longest=100)
    assert {(red, 9, 9) for red in range(7)} | {RED, BLUE} <= colours_of(drawn)
    assert 5 * 100 <= drawn.width <= 5 * 120
    legend = (0, drawn.height - 25, drawn.width, drawn.height)
    assert {RED, BLUE, (0, 0, 0)} <= colours_of(drawn, legend)


def test_a_contact_sheet_has_its_sections_one_under_the_other():
    best, worst = Image.new("RGB", (300, 200), RED), Image.new("RGB", (300, 200), BLUE)
    sections = {"best": [("1: 0.9", [("image", best), ("truth", best)])], "worst": [("2: 0.1", [("", worst)])]}
    drawn = contact_sheet("nad", sections, {"sky": (0, 255, 0)})
    pixels = np.asarray(drawn)
    red, blue = ((pixels == colour).all(2) for colour in (RED, BLUE))
    assert red.sum() == 2 * 150 * 100
    assert blue.sum() == 150 * 100
    assert np.nonzero(red)[0].max() < np.nonzero(blue)[0].min()
    assert (0, 255, 0) in colours_of(drawn, (0, drawn.height - 25, drawn.width, drawn.height))
    untitled = contact_sheet("nad", sections | {"best": [("1: 0.9", [("", best), ("", best)])]}, {"sky": (0, 255, 0)})
    assert untitled.height < drawn.height
    assert contact_sheet("nad", {"best": [], "worst": []}, {"sky": BLUE}).height < 80


def test_error_maps_tell_correct_wrong_and_ignored_pixels_apart():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1, 4, 3), dtype=np.uint8))
    drawn = np.asarray(error_map(image, np.array([[0, 1, IGNORED, 2]]), np.array([[0, 2, 0, 2]])))
    wrong, ignored = (list(ERROR_COLOURS[name]) for name in ("wrong", "ignored"))
    assert drawn[0, 1:3].tolist() == [wrong, ignored]
    assert (np.ptp(drawn[0, [0, 3]], axis=1) == 0).all()  # grey
    assert (drawn[0, [0, 3]] >= 180).all()


def test_heat_images_keep_their_steps_and_look_like_overlays(tmp_path):
    steps = np.arange(-127, 129, dtype=np.int16).clip(max=127).astype(np.int8).reshape(16, 16)
    heat_image(steps).save(tmp_path / "h.png")
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    with Image.open(tmp_path / "h.png") as reopened:
        assert (heat_steps(reopened) == steps).all()
        placed = Image.alpha_composite(photograph.convert("RGBA"), reopened.convert("RGBA")).convert("RGB")
    expected = np.asarray(heat_overlay(photograph, steps / 127)).astype(int)
    assert np.abs(np.asarray(placed) - expected).max() <= 2


def test_a_colour_bar_runs_from_blue_to_orange_over_its_numbers():
    bar = np.asarray(colour_bar(0.25)).astype(int)
    left, middle, right = bar[3, 0], bar[3, bar.shape[1] // 2], bar[3, -1]
    assert left.argmax() == 2
    assert right.argmax() == 0
    assert middle.min() > 250
    assert (bar[14:] < 100).any(axis=(0, 2))[:20].any()  # numbers at both ends
    assert (bar[14:] < 100).any(axis=(0, 2))[-20:].any()
