import numpy as np
import pytest
from PIL import Image

from nadpipe.errors import NadpipeError
from nadpipe.pictures import class_colours, indexed_image, overlay, panel, read_mask


def test_label_maps_reload_to_the_same_labels(tmp_path):
    labels = np.random.default_rng(0).integers(0, 200, (9, 13))
    indexed_image(labels).save(tmp_path / "l.png")
    assert Image.open(tmp_path / "l.png").mode == "P"
    assert (read_mask(str(tmp_path / "l.png"), (9, 13), 200, 255) == labels).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_of_8_and_16_bits_are_read(tmp_path, dtype):
    mask = np.array([[0, 3], [255, 1]], dtype)
    Image.fromarray(mask).save(tmp_path / "m.png")
    assert read_mask(str(tmp_path / "m.png"), (2, 2), 4, 255).tolist() == mask.tolist()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("RGB", (4, 3)), "mask has mode RGB"),
        (Image.new("L", (5, 3)), "mask is 5 × 3, its image 4 × 3 pixels"),
        (Image.new("L", (4, 3), 7), "mask holds 7; allowed are 0 to 2 and 255"),
    ],
)
def test_masks_that_do_not_fit_are_named(tmp_path, picture, message):
    picture.save(tmp_path / "m.png")
    with pytest.raises(NadpipeError, match=message):
        read_mask(str(tmp_path / "m.png"), (3, 4), 3, 255)
    with pytest.raises(NadpipeError, match="not a readable mask"):
        read_mask(str(tmp_path / "none.png"), (3, 4), 3, 255)


def test_class_colours_differ():
    colours = class_colours(171)
    assert len(np.unique(colours, axis=0)) == 171
    near = np.abs(colours[1:].astype(int) - colours[:-1]).max(1)
    assert near.min() > 60


def test_overlays_leave_ignored_pixels_alone():
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    drawn = np.asarray(overlay(image, np.array([[0, 255]]), 3))
    assert drawn[0, 1].tolist() == [10, 20, 30]
    assert drawn[0, 0].tolist() != [10, 20, 30]
    sheet = panel({"a": image, "b": image}, {"fish": (255, 0, 0)})
    assert sheet.width == 2 * (2 + 4)
