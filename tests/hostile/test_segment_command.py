"""Files and texts that `nadpipe segment` cannot use: each is refused in one line before the model runs."""

import numpy as np
import pytest
from PIL import Image

from nadpipe.cli import main
from nadpipe.errors import BAD_INPUT

IMAGES = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no image"),
    "truncated": lambda path: path.write_bytes(_png()[:200]),
    "wrong header": lambda path: path.write_bytes(_png()[:8] + b"\0" * 400),
    "strip": lambda path: Image.new("RGB", (650, 10)).save(path),
    "animation": lambda path: Image.new("L", (9, 9)).save(
        path, "PNG", save_all=True, append_images=[Image.new("L", (9, 9), 9)]
    ),
    "32 bits": lambda path: Image.fromarray(np.full((9, 9), 70000, np.int32)).save(path, "TIFF"),
    "float": lambda path: Image.fromarray(np.ones((9, 9), np.float32)).save(path, "TIFF"),
}
TEXTS = {
    "one class": ["sky"],
    "no names": ["sky", " , "],
    "empty": ["sky", ""],
    "no title": ["sky", ": blue"],
    "the same class": ["sky", "sky"],
    "a common name": ["sky, air", "cloud, air"],
    "too many": [f"class {number}" for number in range(257)],
}


def _png():
    from io import BytesIO

    content = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def refuse(tmp_path, monkeypatch, capsys, tally):
    """Return a function that runs the command and returns the line with which it is refused."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.png").write_bytes(_png())

    def refuse(kind, *arguments):
        code = main(["segment", *arguments])
        reported = capsys.readouterr().err
        refused = code == BAD_INPUT and reported.count("\n") == 1 and "; " in reported
        tally(kind, refused)
        assert refused, reported
        assert not (tmp_path / "o").exists()
        return reported

    return refuse


@pytest.mark.parametrize("kind", IMAGES)
def test_a_bad_image_is_named(tmp_path, refuse, kind):
    IMAGES[kind](tmp_path / "bad.png")
    assert ": bad.png: " in refuse("image to segment", "good.png", "bad.png", "--texts", "road", "sky", "--output", "o")


@pytest.mark.parametrize("kind", TEXTS)
def test_bad_texts_are_refused(refuse, kind):
    assert ": --texts: " in refuse("text to segment by", "good.png", "--texts", *TEXTS[kind], "--output", "o")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["good.png", "good.png"], "good.png: given more than once"),
        (["good.png", "--methods", "nad", "x"], "unknown method x"),
        (["good.png", "--background-threshold", "0.5"], "--background-threshold: no class is called background"),
        (["good.png"], "results/provenance.json: "),
    ],
)
def test_bad_requests_are_refused(refuse, arguments, words):
    assert words in refuse("request to segment", *arguments, "--texts", "road", "sky", "--output", "o")


def test_a_name_that_is_no_text_is_refused(tmp_path, refuse):
    name = b"\xff.png".decode("utf-8", "surrogateescape")
    (tmp_path / name).write_bytes(_png())
    refuse("image to segment", name, "--texts", "road", "sky", "--output", "o")


def test_an_existing_folder_is_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").write_bytes(_png())
    assert main(["segment", "photos/1.png", "--texts", "road", "sky", "--output", "photos"]) == BAD_INPUT
    assert "photos: exists; name a new folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["1.png"]
