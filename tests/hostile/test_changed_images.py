"""Images and masks that changed after they were listed are refused: what is decoded has the checksum in the manifest."""

import ast
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stage_run import noise

import nadpipe
from nadpipe.data.classes import make_classes
from nadpipe.data.masks import read_mask
from nadpipe.data.views import read_image
from nadpipe.errors import NadpipeError
from nadpipe.stages.draw_contact_sheets import draw_contact_sheets
from nadpipe.stages.draw_overlays import draw_overlays
from nadpipe.store.manifest import read_images

CHANGED = r"has changed since the data set was listed; restore the file, or list .* --forcerun index_images"
ARGUMENTS = {"read_image": 2, "read_mask": 5}  # with checksums
# the user's own images, which no manifest lists
UNLISTED = {(path, "read_image") for path in ("looks/explain.py", "library/decomposition.py", "library/results.py")}


def change(path):
    """Change one pixel of a picture; return its previous content."""
    content = path.read_bytes()
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    assert path.read_bytes() != content
    return content


def test_stages_refuse_changed_images_and_masks(run, tally):
    Image.fromarray(np.zeros((70, 90), np.uint8)).save(run.folder / "m.png")
    run.write_images(noise(2), mask=["m.png"] * 2)
    contributions = run.decompose(views="sliding")
    classes, images = run.classes(), run.folder / "images.parquet"
    run.select(contributions)
    confusion, labels = run.segment(contributions, methods=("nad",))
    drawn = run.folder / "drawn"
    stages = {
        "extract_features": (lambda: run.decompose(name="x"), ["image 1.png"]),
        "segment_images": (lambda: run.segment(contributions, methods=("nad",)), ["m.png"]),
        "draw_overlays": (lambda: draw_overlays(images, classes, (labels,), drawn), ["image 1.png", "m.png"]),
        "draw_contact_sheets": (
            lambda: draw_contact_sheets(images, classes, (confusion,), (labels,), drawn),
            ["image 1.png", "m.png"],
        ),
    }
    for stage, files in stages.values():
        for name in files:
            content = change(run.folder / name)
            with pytest.raises(NadpipeError, match=f"/{name}: {CHANGED}"):
                stage()
            tally("changed images and masks", True)
            (run.folder / name).write_bytes(content)
    assert not drawn.exists()
    manifest = read_images(images)
    for name in ("", "mask_"):
        hashes = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in manifest[f"{name}path"]]
        assert manifest[f"{name}sha256"].tolist() == hashes


def test_a_photograph_that_gives_its_orientation_to_a_mask_must_be_the_listed_one(tmp_path, tally):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 3)).save(tmp_path / "p.jpg", exif=exif)
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "m.png")
    paths = [str(tmp_path / name) for name in ("m.png", "p.jpg")]
    mask, photograph = (hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths)
    assert (read_mask(*paths, (4, 3), make_classes(["a", "b"]), (mask, photograph)) == 0).all()
    with pytest.raises(NadpipeError, match=rf"p\.jpg: {CHANGED}"):
        read_mask(*paths, (4, 3), make_classes(["a", "b"]), (mask, mask))
    tally("changed images and masks", True)


def test_every_call_of_a_reader_passes_the_checksum():
    folder = Path(nadpipe.__file__).parent
    calls = {
        (path.relative_to(folder).as_posix(), node.func.id): len(node.args)
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ARGUMENTS
    }
    assert len(calls) > 6
    assert {call for call, arguments in calls.items() if arguments != ARGUMENTS[call[1]]} == UNLISTED


def test_an_image_is_decoded_from_the_bytes_that_were_hashed(tmp_path, monkeypatch):
    """A file that is replaced between the two would otherwise pass."""
    Image.new("RGB", (2, 2), "red").save(tmp_path / "i.png")
    digest = hashlib.sha256((tmp_path / "i.png").read_bytes()).hexdigest()
    read = Path.read_bytes

    def read_and_replace(path):
        content = read(path)
        Image.new("RGB", (2, 2), "blue").save(path)
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_replace)
    assert read_image(str(tmp_path / "i.png"), digest).getpixel((0, 0)) == (255, 0, 0)
