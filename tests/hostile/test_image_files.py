"""Hostile images, masks and folders are refused in one line that names the file, and start no program."""

import io
import json
import os
import struct
import subprocess
import zlib

import numpy as np
import pandas as pd
import pytest
from conftest import TINY
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from safetensors.torch import save_file

from nadpipe.data import views
from nadpipe.data.classes import Classes
from nadpipe.data.folders import walk_files
from nadpipe.data.layouts import Source, find_layout
from nadpipe.data.listing import folder_fingerprint
from nadpipe.data.manifest import examine
from nadpipe.data.masks import read_mask
from nadpipe.data.views import FORMATS, examine_image, examine_mask, read_image
from nadpipe.errors import NadpipeError
from nadpipe.stages.extract_features import _place_crops
from nadpipe.stages.index_images import index_images
from nadpipe.store.kinds.images import IMAGES
from nadpipe.store.manifest import read_images
from nadpipe.store.tables import read_parquet
from nadpipe.towers.model import load_model

CLASSES = Classes(("a", "b"), (("a",), ("b",)), ((0,), (1,)), ((1, 2, 3), (4, 5, 6)))
PIXELS = np.random.default_rng(0).integers(0, 2, (12, 16)).astype(np.uint8)


def encoded(form, image=None, **options):
    stream = io.BytesIO()
    (Image.fromarray(PIXELS * 255).convert("RGB") if image is None else image).save(stream, form, **options)
    return stream.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, depth=8, colour=2, data=b"\0" * 99, more=b""):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff(entries, offset=8):
    """Return a TIFF file with one directory: (tag, type, count, value)."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHI", b"II", 42, offset) + struct.pack("<H", len(entries)) + body + struct.pack("<I", 0)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/owned) (w) file closefile\nshowpage\n%%EOF\n"
SIZES = [(256, 4, 1, 9), (257, 4, 1, 9), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 81)]
CONTENTS = {
    "empty": b"",
    "text": b"hello",
    "html": b"<!DOCTYPE html><html></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "eps": EPS,
    "eps after bytes": b"\xc5\xd0\xd3\xc6" + struct.pack("<7I", 32, len(EPS), 0, 0, 0, 0, 0) + EPS,
    "pdf": b"%PDF-1.4\n1 0 obj<<>>endobj\n%%EOF",
    "ico": encoded("ICO", Image.new("RGB", (16, 16))),
    "jpeg 2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(200),
    "avif": b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00avifmif1miaf" + bytes(200),
    "heic": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(200),
    "psd": b"8BPS\x00\x01" + bytes(200),
    "tga": encoded("TGA"),
    "pcx": encoded("PCX"),
    "wmf": b"\xd7\xcd\xc6\x9a" + bytes(200),
    "fits": b"SIMPLE  =                    T" + bytes(3000),
    "mpeg": b"\x00\x00\x01\xb3" + bytes(200),
    "gif of two frames": encoded("GIF", Image.new("L", (9, 9)), save_all=True, append_images=[Image.new("L", (9, 9), 9)]),
    "apng of two frames": encoded("PNG", Image.new("L", (9, 9)), save_all=True, append_images=[Image.new("L", (9, 9), 9)]),
    "tiff of two pages": encoded("TIFF", Image.new("L", (9, 9)), save_all=True, append_images=[Image.new("L", (9, 9), 9)]),
    "png of 4 · 10^10 pixels": png(200_000, 200_000),
    "png of 150 megapixels": png(15_000, 10_000),
    "png of 2^31 rows": png(1, 2**31 - 1),
    "png of no pixels": png(0, 0),
    "png without data": b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0))
    + chunk(b"IEND", b""),
    "png without header": b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", zlib.compress(bytes(99))),
    "png cut": encoded("PNG")[:-40],
    "png of depth 3": png(9, 9, depth=3),
    "png of colour type 7": png(9, 9, colour=7),
    "png with a text bomb": png(9, 9, more=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27), 1))),
    "png with a profile bomb": png(9, 9, more=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**27), 1))),
    "png with a wrong checksum": encoded("PNG")[:40] + b"\xff" + encoded("PNG")[41:],
    "jpeg cut": encoded("JPEG", Image.new("RGB", (300, 300)))[:400],
    "jpeg without image": b"\xff\xd8\xff\xd9",
    "jpeg of 65,500 by 65,500": b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xdc\xff\xdc\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01\xff\xd9",
    "bmp of 2^31 pixels": b"BM" + bytes(8) + struct.pack("<IIiiHHIIIIII", 54, 40, 2**31 - 1, 1, 1, 24, 0, 0, 0, 0, 0, 0),
    "ppm of 10^10 pixels": b"P6 100000 100000 255\n",
    "ppm cut": b"P6 100 100 255\nabc",
    "ppm with text": b"P3 2 2 255\n1 2 x\n",
    "ppm of negative size": b"P6 -1 -1 255\n",
    "webp cut": encoded("WEBP")[:30],
    "webp of no frames": b"RIFF\x04\x00\x00\x00WEBP",
    "tiff without entries": tiff([]),
    "tiff of no pixels": tiff([(256, 4, 1, 0), (257, 4, 1, 0), *SIZES[2:]]),
    "tiff of 10^10 pixels": tiff([(256, 4, 1, 10**5), (257, 4, 1, 10**5), *SIZES[2:]]),
    "tiff with data beyond the file": tiff([*SIZES[:5], (273, 4, 1, 10**6), SIZES[6]]),
    "tiff with an array of 2^32 values": tiff([*SIZES[:5], (273, 4, 2**32 - 1, 8), SIZES[6]]),
    "tiff with a directory beyond the file": tiff(SIZES, offset=10**6),
    "tiff with another compression": tiff([*SIZES[:3], (259, 3, 1, 34_712), *SIZES[4:]]),
    "tiff of floats": encoded("TIFF", Image.new("F", (9, 9))),
    "tiff of 32 bits": encoded("TIFF", Image.fromarray(np.full((5, 5), 70_000, np.int32))),
    "gif cut": encoded("GIF")[:20],
    "gif of 65,535 by 65,535": b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x08\x00;",
    "long": encoded("PNG", Image.new("L", (6500, 100))),
    "zip": b"PK\x03\x04" + bytes(99),
}


OTHER = ("svg", "eps", "eps after bytes", "pdf", "ico", "jpeg 2000", "avif", "heic", "psd", "tga", "pcx", "wmf", "fits", "mpeg")
REASONS = dict.fromkeys(OTHER, "cannot identify its content as BMP, GIF, ") | {
    "png of 150 megapixels": "15000 × 10000 pixels are more than 134217728",
    "gif of two frames": "it has several frames",
    "apng of two frames": "it has several frames",
    "tiff of two pages": "it has several frames",
}


def refused(call, path, tally):
    with pytest.raises(NadpipeError) as error:
        call()
    message = str(error.value)
    tally("images", "\n" not in message)
    assert "\n" not in message
    assert repr(str(path))[1:-1] in message
    assert ";" in message
    assert "MemoryError" not in message
    return message


@pytest.fixture(autouse=True)
def no_programs(monkeypatch):
    """Fail if a program is started."""

    def started(*arguments, **options):
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(os, "system", started)


@pytest.mark.parametrize("case", CONTENTS)
@pytest.mark.filterwarnings("ignore")
def test_a_hostile_image_is_refused(tmp_path, tally, case):
    path = tmp_path / "image.jpg"
    path.write_bytes(CONTENTS[case])
    assert REASONS.get(case, "") in refused(lambda: examine_image(str(path)), path, tally)


MASKS = [name for name in CONTENTS if "frames" not in name and name not in ("tiff of two pages", "long")]


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.filterwarnings("ignore")
def test_a_hostile_mask_is_refused(tmp_path, tally, case):
    path = tmp_path / "mask.png"
    path.write_bytes(CONTENTS[case])
    assert REASONS.get(case, "") in refused(lambda: read_mask(str(path), str(path), (9, 9), CLASSES), path, tally)


@pytest.mark.parametrize("form", ["BMP", "GIF", "PNG", "PPM", "TIFF", "WEBP"])
@pytest.mark.filterwarnings("ignore")
def test_images_with_damaged_bytes_are_read_or_refused(tmp_path, tally, form):
    """Each byte of the header is replaced once."""
    content = encoded(form, Image.fromarray(PIXELS * 255))
    path = tmp_path / "image"
    for position in range(0, min(len(content), 120), 3):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        message = None
        try:
            examined = examine_image(str(path))
        except NadpipeError as error:
            message = str(error)
        if message is None:
            assert read_image(str(path)).size == (examined.width, examined.height)
        else:
            tally("images", "\n" not in message)
            assert message.startswith(f"{path}: ")
            assert "\n" not in message


PLACES = {
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "link to itself": lambda path: path.symlink_to(path),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "missing": lambda path: None,
    "of 2 GiB": lambda path: (path.touch(), os.truncate(path, 2**31)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("read", [examine_image, read_image, examine_mask])
def test_an_image_that_is_no_file_is_refused(tmp_path, tally, place, read):
    path = tmp_path / "image.jpg"
    PLACES[place](path)
    refused(lambda: read(str(path)), path, tally)


@pytest.mark.parametrize("place", PLACES)
def test_a_mask_that_is_no_file_is_refused(tmp_path, tally, place):
    path = tmp_path / "mask.png"
    PLACES[place](path)
    refused(lambda: read_mask(str(path), "photograph.jpg", (9, 9), CLASSES), path, tally)


@pytest.mark.parametrize("name", ["a" * 300, "new\nline.jpg", "nul\0.jpg", "surrogate\udcff.jpg", "a/b.jpg", ""])
def test_an_image_with_an_impossible_name_is_refused(tmp_path, tally, name):
    path = f"{tmp_path}/{name}"
    refused(lambda: examine_image(path), path, tally)


def test_a_photograph_that_turns_a_mask_is_opened_with_the_same_care(tmp_path, tally):
    Image.fromarray(PIXELS).save(tmp_path / "mask.png")
    (tmp_path / "photograph.jpg").write_bytes(EPS)
    refused(lambda: read_mask(str(tmp_path / "mask.png"), str(tmp_path / "photograph.jpg"), (16, 12), CLASSES), tmp_path, tally)


def test_frames_are_not_counted(tmp_path, monkeypatch, tally):
    """Counting the frames of a large file takes minutes."""
    pages = [Image.new("1", (9, 9))] * 30
    pages[0].save(tmp_path / "many.tiff", save_all=True, append_images=pages[1:])
    frames = []
    monkeypatch.setattr(TiffImageFile, "seek", lambda self, frame: frames.append(frame))
    assert "several frames" in refused(lambda: examine_image(str(tmp_path / "many.tiff")), tmp_path / "many.tiff", tally)
    assert frames == []


def test_each_format_is_read(tmp_path):
    for form in FORMATS:
        (tmp_path / "image").write_bytes(encoded(form))
        assert read_image(str(tmp_path / "image")).size == (16, 12)


@pytest.fixture
def folder(tmp_path):
    """Return a tree with three images in two folders."""
    for name in ("2023/a.png", "2023/deep/b.png", "2024/c.png"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS).save(tmp_path / "tree" / name)
    return tmp_path / "tree"


def listed(folder):
    return find_layout("tree").list_images(Source(folder))["path"].tolist()


def test_linked_folders_are_listed(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "elsewhere" / "d.png")
    before = folder_fingerprint(folder)
    (folder / "2025").symlink_to(tmp_path / "elsewhere")
    assert [path.removeprefix(f"{folder}/") for path in listed(folder)][-1] == "2025/d.png"
    assert find_layout("tree").list_images(Source(folder))["group"].tolist() == ["2023", "2023", "2024", "2025"]
    linked = folder_fingerprint(folder)
    assert linked != before
    Image.fromarray(PIXELS).save(tmp_path / "elsewhere" / "e.png")
    assert folder_fingerprint(folder) != linked


@pytest.mark.parametrize("target", ["", "2023", "2024", "2023/deep", ".."])
def test_a_link_to_a_folder_that_is_listed_anyway_is_refused(folder, tally, target):
    """Its images would count twice, or without end."""
    link = folder / "2023" / "again"
    link.symlink_to(folder / target)
    for call in (lambda: listed(folder), lambda: folder_fingerprint(folder)):
        message = refused(call, "again", tally)
        assert "link to a folder that is listed anyway; remove the link" in message


def test_two_links_to_the_same_folder_are_refused(folder, tmp_path, tally):
    (tmp_path / "elsewhere").mkdir()
    for name in ("one", "two"):
        (folder / name).symlink_to(tmp_path / "elsewhere")
    refused(lambda: listed(folder), folder, tally)


def test_a_folder_without_permission_is_refused(folder, monkeypatch, tally):
    """The tests may run as root, who may read every folder, so the system call is replaced."""
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    for call in (lambda: listed(folder), lambda: folder_fingerprint(folder)):
        assert "folder cannot be read (Permission denied)" in refused(call, folder / "2023/deep", tally)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_this_user_may_not_read_is_refused(folder, tally):
    (folder / "2023/deep").chmod(0)
    try:
        assert "Permission denied" in refused(lambda: listed(folder), folder / "2023/deep", tally)
    finally:
        (folder / "2023/deep").chmod(0o700)


def test_everything_below_a_folder_is_listed_once(folder, monkeypatch):
    (folder / "dangling.png").symlink_to("nothing")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    names = ["2023/a.png", "2023/deep/b.png", "2024/c.png", "dangling.png", "pipe.png"]
    assert sorted(name for name, _ in walk_files(folder)) == names
    monkeypatch.chdir(folder)
    assert sorted(name for name, _ in walk_files(type(folder)())) == names


def test_ignored_formats_are_reported_and_listed(folder, tmp_path, capsys):
    for name in ("2023/y.GIF", "2024/z.avif", "2024/z.heic", "x.gif", "notes.txt"):
        (folder / name).write_bytes(b"")
    index_images("tree", folder, tmp_path / "images.parquet")
    messages = capsys.readouterr().err.splitlines()
    assert f"{folder}: 4 images in formats that are not read (2 .gif, 1 .avif, 1 .heic); convert them to use them" in messages
    table = read_parquet(tmp_path / "images.parquet", IMAGES)
    assert table["image_id"].tolist() == [0, 1, 2, -1, -1, -1, -1]
    assert table["problem"][3] == f"{folder / '2023/y.GIF'}: images .gif are not read; convert it"
    assert len(read_images(tmp_path / "images.parquet")) == 3


def test_ignored_images_keep_the_types_of_the_source(folder):
    rows = find_layout("tree").list_images(Source(folder)).assign(red=[0, 1, 1], price=[0.5, 1, 2], name=["a", None, "c"])
    manifest = examine(rows, ignored=[folder / "x.gif"])
    assert manifest["red"].dtype == np.int64
    pd.testing.assert_frame_equal(manifest[:3], examine(rows), check_dtype=False)


def test_a_folder_of_ignored_images_says_so(tmp_path, tally):
    (tmp_path / "x.heic").write_bytes(b"")
    message = refused(lambda: listed(tmp_path), tmp_path, tally)
    assert "only 1 in formats that are not read" in message


@pytest.fixture(scope="module")
def model(tiny_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_file({name: value.contiguous() for name, value in tiny_clip.state_dict().items()}, folder / "w.safetensors")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    return load_model(str(folder / "tiny.json"), str(folder / "w.safetensors"), "cpu")


@pytest.mark.parametrize(("scale", "stride"), [(448.0, 0.5), (16.0, 0.001), (8.0, 1e-9)])
def test_crops_that_would_take_all_memory_are_refused(model, tally, scale, stride):
    rows = pd.DataFrame({"path": ["big.jpg"], "height": [1000], "width": [1500]})
    message = refused(lambda: _place_crops(rows, model, "sliding", scale, 1.0, stride, "model"), "big.jpg", tally)
    assert "lower segmentation.scale" in message


def test_crops_are_counted_as_they_are_placed():
    for arguments in [(100, 230, 100, 100, 0.5), (333, 333, 64, 64, 0.5), (31, 47, 60, 20, 0.3), (90, 91, 64, 32, 1.0)]:
        assert views.count_boxes(*arguments) == len(views.sliding_boxes(*arguments))
