import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nadpipe.data.views import OPENCV, Box, centre_box, crop_pixels, examine_mask, read_image, resized_size, sliding_boxes
from nadpipe.errors import NadpipeError
from nadpipe.pages.pictures import crop_to_square


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 300), st.floats(0.3, 1), st.floats(0.05, 1))
def test_sliding_crops_cover_every_pixel_and_stay_inside(height, width, short_side, share, stride):
    size = max(1, round(short_side * share))
    small = max(height, width) < 20 * min(height, width)
    boxes = sliding_boxes(height, width, short_side, size, stride) if small else []
    rows, columns = resized_size(height, width, short_side)
    assert len(boxes) == len({box.crop_top for box in boxes}) * len({box.crop_left for box in boxes})
    assert boxes == sorted(boxes, key=lambda box: (box.crop_top, box.crop_left))
    for axis, length in (("crop_top", rows), ("crop_left", columns)):
        starts = sorted({getattr(box, axis) for box in boxes})
        if starts:
            assert starts[0] == 0
            assert starts[-1] == length - size
            assert all(b - a <= max(1, round(size * stride)) for a, b in itertools.pairwise(starts))


def test_the_last_crop_is_shifted_back_to_the_border():
    boxes = sliding_boxes(100, 230, 100, 100, 0.5)
    assert [box.crop_left for box in boxes] == [0, 50, 100, 130]
    assert {box.crop_top for box in boxes} == {0}


def test_one_crop_is_enough_for_a_square():
    assert len(sliding_boxes(333, 333, 64, 64, 0.5)) == 1
    assert centre_box(333, 333, 64) == sliding_boxes(333, 333, 64, 64, 0.5)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("shortest", Box(0, 32, 64, 64, 128)),
        ("longest", Box(-16, 0, 64, 32, 64)),
        ("squash", Box(0, 0, 64, 64, 64)),
    ],
)
def test_a_view_is_mapped_back_to_the_pixels_of_its_image(mode, expected):
    """The left half is red, the right half blue. The grid of an overlay lies on the thumbnail of the same view."""
    picture = Image.new("RGB", (200, 100), "red")
    picture.paste("blue", (100, 0, 200, 100))
    [box] = centre_box(100, 200, 64, mode)
    assert box == expected
    view = crop_pixels(picture, [box], "bicubic", fill=128)[0]
    corner = (box.crop_top, box.crop_left, box.crop_size, box.resized_height, box.resized_width)
    thumbnail = np.asarray(crop_to_square(picture, *corner, 256))
    inside, inside_thumbnail = (slice(17, 47), slice(68, 188)) if mode == "longest" else (slice(None), slice(None))
    assert (view[inside, [30, 34]].argmax(-1) == [0, 2]).all()
    assert (thumbnail[inside_thumbnail, [120, 136]].argmax(-1) == [0, 2]).all()
    if mode == "longest":
        assert (view[[0, 15, 48, 63]] == 128).all()
        assert (thumbnail[[0, 60, 195, 255]] == 0).all()


def test_a_larger_short_side_takes_more_crops():
    boxes = sliding_boxes(100, 150, 128, 64, 0.5)
    assert sorted({box.crop_top for box in boxes}) == [0, 32, 64]
    assert sorted({box.crop_left for box in boxes}) == [0, 32, 64, 96, 128]
    assert {(box.resized_height, box.resized_width, box.crop_size) for box in boxes} == {(128, 192, 64)}


def test_crops_of_one_image_are_parts_of_one_resized_image():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    boxes = sliding_boxes(50, 80, 50, 50, 0.5)
    crops = crop_pixels(Image.fromarray(pixels), boxes, "bicubic")
    for box, crop in zip(boxes, crops, strict=True):
        expected = pixels[box.crop_top : box.crop_top + 50, box.crop_left : box.crop_left + 50]
        np.testing.assert_array_equal(crop, expected)


@pytest.mark.parametrize("size", [(31, 47), (13, 20), (90, 141), (50, 80)])
def test_the_filter_of_opencv_is_bilinear_between_pixel_centres(size):
    """Each new pixel is a mean of at most four, whatever the scale: no antialiasing."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    box = Box(0, 0, min(size), *size)
    resized = crop_pixels(Image.fromarray(pixels), [box], OPENCV)[0]
    for row, column in itertools.product(range(0, min(size), 3), repeat=2):
        y = min(max((row + 0.5) * 50 / size[0] - 0.5, 0), 49)
        x = min(max((column + 0.5) * 80 / size[1] - 0.5, 0), 79)
        corners = itertools.product((int(y), min(int(y) + 1, 49)), (int(x), min(int(x) + 1, 79)))
        shares = itertools.product((1 - y % 1, y % 1), (1 - x % 1, x % 1))
        expected = sum(down * right * pixels[at].astype(float) for at, (down, right) in zip(corners, shares, strict=True))
        assert np.abs(resized[row, column] - expected).max() <= 0.5 + 1e-4
    assert OPENCV not in {filter.name.lower() for filter in Image.Resampling}


def test_sizes_are_rounded_down_or_to_the_nearest_pixel():
    assert resized_size(333, 500, 64) == (64, 96)  # 96.1
    assert resized_size(375, 500, 64) == (64, 85)  # 85.3
    assert resized_size(500, 374, 64) == (85, 64)  # 85.6
    assert resized_size(500, 374, 64, nearest=True) == (86, 64)
    assert {box.resized_height for box in sliding_boxes(500, 374, 64, 64, 0.5, nearest=True)} == {86}


def test_photographs_are_rotated_upright(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "p.jpg", exif=exif, quality=95)
    image = read_image(str(tmp_path / "p.jpg"))
    assert image.size == (20, 30)
    assert examine_mask(str(tmp_path / "p.jpg")).height == 30
    assert np.asarray(image)[3, 10, 0] > 200
    assert np.asarray(image)[26, 10, 0] < 50


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "RGBA"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    Image.new(mode, (7, 5)).save(tmp_path / "i.tiff")
    assert read_image(str(tmp_path / "i.tiff")).mode == "RGB"
    mask = examine_mask(str(tmp_path / "i.tiff"))
    assert (mask.height, mask.width) == (5, 7)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0 cut"])
def test_unreadable_images_are_reported(tmp_path, content):
    (tmp_path / "bad.jpg").write_bytes(content)
    for read in (read_image, examine_mask):
        with pytest.raises(NadpipeError, match=r"bad\.jpg: not a readable (image|mask)"):
            read(str(tmp_path / "bad.jpg"))
        with pytest.raises(NadpipeError, match=r"gone\.jpg: no such (image|mask)"):
            read(str(tmp_path / "gone.jpg"))


def test_a_truncated_photograph_is_an_error(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "t.jpg")
    content = (tmp_path / "t.jpg").read_bytes()
    (tmp_path / "t.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(NadpipeError, match="not a readable image"):
        read_image(str(tmp_path / "t.jpg"))
