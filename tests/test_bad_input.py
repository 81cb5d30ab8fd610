"""Unusual images and tables are read correctly; damaged ones are refused with a clear message."""

import io
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nadpipe.cli import main
from nadpipe.data.manifest import examine
from nadpipe.data.tables import read_table
from nadpipe.data.views import examine_image, read_image
from nadpipe.errors import BAD_INPUT, NadpipeError
from nadpipe.stages.index_images import index_images
from nadpipe.store.kinds.images import IMAGES
from nadpipe.store.manifest import read_images
from nadpipe.store.tables import read_parquet

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)


def encoded(image, form, **options):
    """Return an image's bytes."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def bomb():
    """Return a PNG whose header declares 4 · 10^10 pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


WHOLE = Image.fromarray(PIXELS)
FRAMES = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
BAD = {
    "empty.jpg": (b"", "not a readable image (cannot identify"),
    "text.jpg": (b"I am a text", "not a readable image (cannot identify"),
    "cut.jpg": (encoded(WHOLE.resize((90, 90)), "JPEG")[:-900], "not a readable image (image file is truncated"),
    "cut.png": (encoded(WHOLE, "PNG")[:-60], "not a readable image ("),
    "bomb.png": (bomb(), "not a readable image (Image size (40000000000 pixels) exceeds limit"),
    "animated.gif": (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "it has several frames"),
    "animated.webp": (encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]), "it has several frames"),
    "long.png": (encoded(Image.new("L", (30_000, 10)), "PNG"), "30000 × 10 is longer than 64 times its short side"),
    "floats.tiff": (
        encoded(Image.fromarray(RNG.random((5, 5), np.float32)), "TIFF"),
        "not whole numbers, save it with 8 or 16",
    ),
    "deep.tiff": (encoded(Image.fromarray(np.full((5, 5), 70_000, np.int32)), "TIFF"), "its pixels have 32 bits"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_image_is_reported_in_one_line_and_leaves_no_output(tmp_path, capsys, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "t.csv").write_text(f"path\n{name}\n")
    output = tmp_path / "out" / "images.parquet"
    assert main(["index-images", "--layout", "table", "--path", str(tmp_path / "t.csv"), "--output", str(output)]) == BAD_INPUT
    message_line = capsys.readouterr().err.splitlines()[-1]
    assert message_line.startswith(f"nadpipe index-images: {tmp_path / name}: ")
    assert message in message_line
    assert not output.exists()
    assert list(tmp_path.rglob("*.parquet*")) == []


GREY16 = np.linspace(0, 65535, 192).reshape(12, 16).astype(np.uint16)
PALETTE = WHOLE.quantize(8)
GOOD = {
    "cmyk.jpg": (WHOLE.convert("CMYK"), WHOLE.convert("CMYK").convert("RGB"), 40),
    "grey.png": (WHOLE.convert("L"), WHOLE.convert("L").convert("RGB"), 0),
    "grey16.png": (Image.fromarray(GREY16), Image.fromarray((GREY16 / 257).round().astype(np.uint8)).convert("RGB"), 0),
    "grey16.tiff": (Image.fromarray(GREY16), Image.fromarray((GREY16 / 257).round().astype(np.uint8)).convert("RGB"), 0),
    "one pixel.png": (WHOLE.crop((0, 0, 1, 1)), WHOLE.crop((0, 0, 1, 1)), 0),
    "ünïcode 图.png": (WHOLE, WHOLE, 0),
    "two\nlines.png": (WHOLE, WHOLE, 0),
}


@pytest.mark.parametrize("name", GOOD)
def test_an_unusual_image_is_read_correctly(tmp_path, name):
    image, expected, tolerance = GOOD[name]
    image.save(tmp_path / name)
    read = read_image(str(tmp_path / name))
    assert np.abs(np.asarray(read).astype(int) - np.asarray(expected)).max() <= tolerance
    examined = examine_image(str(tmp_path / name))
    assert (examined.width, examined.height) == read.size


def test_a_palette_with_transparency_keeps_its_colours(tmp_path):
    PALETTE.save(tmp_path / "p.png", transparency=bytes([0, 255] * 4))
    np.testing.assert_array_equal(np.asarray(read_image(str(tmp_path / "p.png"))), np.asarray(PALETTE.convert("RGB")))


def test_a_photograph_with_a_preview_is_one_image(tmp_path):
    WHOLE.save(tmp_path / "p.jpg", "MPO", save_all=True, append_images=[WHOLE.resize((8, 6))])
    examined = examine_image(str(tmp_path / "p.jpg"))
    assert (examined.width, examined.height) == (16, 12)


@pytest.fixture
def mixed(tmp_path):
    """Return the folder of a table with three valid and five invalid images."""
    for name in ("a.png", "b c.png", "d\ne.png", "g.png"):
        Image.new("RGB", (8, 6), "red").save(tmp_path / name)
    Image.new("L", (3, 3)).save(tmp_path / "small.png")
    (tmp_path / "zero.jpg").write_bytes(b"")
    (tmp_path / "no\nimage.jpg").write_bytes(b"nothing")
    paths = ["zero.jpg", "a.png", "gone.jpg", "b c.png", "a.png", "no\nimage.jpg", "d\ne.png", "g.png"]
    masks = [None] * 7 + ["small.png"]
    pd.DataFrame({"path": paths, "mask": masks, "camera": range(8)}).to_csv(tmp_path / "t.csv", index=False)
    return tmp_path


REASONS = [
    "zero.jpg: not a",
    "gone.jpg: no such image",
    "a.png: listed more than once",
    r"no\nimage.jpg",
    "small.png: mask is 3 × 3",
]


def test_all_invalid_images_are_reported_at_once(mixed):
    with pytest.raises(NadpipeError) as error:
        index_images("table", mixed / "t.csv", mixed / "out.parquet", mask_column="mask", threads=2)
    first, *lines = str(error.value).splitlines()
    assert first.startswith("5 of 8 images cannot be used; ")
    assert "bad_images: skip" in first
    assert [reason in line for reason, line in zip(REASONS, lines, strict=True)] == [True] * 5
    assert not (mixed / "out.parquet").exists()


def test_skipped_images_are_listed_with_the_reason_and_not_used(mixed, capsys):
    index_images("table", mixed / "t.csv", mixed / "out.parquet", mask_column="mask", bad_images="skip")
    assert "5 of 8 images are skipped" in capsys.readouterr().err
    table = read_parquet(mixed / "out.parquet", IMAGES)
    assert table["image_id"].tolist() == [0, 1, 2, -1, -1, -1, -1, -1]
    assert [reason in problem for reason, problem in zip(REASONS, table["problem"][3:], strict=True)] == [True] * 5
    used = read_images(mixed / "out.parquet")
    assert [path.rsplit("/", 1)[1] for path in used["path"]] == ["a.png", "b c.png", "d\ne.png"]
    assert used["camera"].tolist() == [1, 3, 6]
    assert used["problem"].isna().all()
    assert used["sha256"].str.fullmatch("[0-9a-f]{64}").all()


def test_a_data_set_without_a_valid_image_is_an_error(tmp_path):
    (tmp_path / "t.csv").write_text("path\na.jpg\nb.jpg\n")
    with pytest.raises(NadpipeError, match=r"2 of 2 images cannot be used; .*none is left"):
        examine(read_table(tmp_path / "t.csv", "path", None, None, None), bad="skip")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_images_are_read_or_refused_in_one_line(tmp_path, form, data):
    content = bytearray(encoded(WHOLE, form))
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=8)):
        content[position] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    path = tmp_path / "damaged"
    path.write_bytes(bytes(content))
    table = pd.DataFrame({"path": [str(path)], "mask_path": None, "group": None, "label": None})
    row, messages = None, []
    try:
        row = examine(table).iloc[0]
    except NadpipeError as error:
        messages.append(str(error))
    if row is None:
        assert messages[0].startswith(f"{path}: not a readable image (")
        assert "\n" not in messages[0]
    else:
        assert read_image(str(path)).size == (row["width"], row["height"])
