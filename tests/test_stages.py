"""All stages in a row on a tiny random model, called as functions: extreme data sets, and every message of bad input."""

import io
import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import TINY
from PIL import Image
from safetensors.torch import save_file

from nadpipe import progress
from nadpipe.artifacts import read_parquet
from nadpipe.errors import NadpipeError
from nadpipe.stages.assign_texts import assign_texts
from nadpipe.stages.compute_contributions import compute_contributions
from nadpipe.stages.draw_overlays import draw_overlays
from nadpipe.stages.embed_texts import embed_texts
from nadpipe.stages.export_attnpool import export_attnpool
from nadpipe.stages.extract_features import extract_features
from nadpipe.stages.fit_directions import fit_directions
from nadpipe.stages.index_images import index_images
from nadpipe.stages.rank_shifts import rank_shifts
from nadpipe.stages.score_segmentation import score_segmentation
from nadpipe.stages.score_shift import score_shift
from nadpipe.stages.segment_images import segment_images
from nadpipe.stages.select_pairs import select_pairs
from nadpipe.stages.tabulate_units import tabulate_units

METHODS = ("nad", "nad_centred", "maskclip", "sclip", "attention")


class Run:
    """A working folder with the tiny model, and the stages with their paths filled in."""

    def __init__(self, folder, clip):
        self.folder = folder
        save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, folder / "w.safetensors")
        (folder / "m.json").write_text(json.dumps(TINY))
        self.model = {"architecture": str(folder / "m.json"), "pretrained": str(folder / "w.safetensors")}
        self.pool = folder / "attnpool.zarr"
        export_attnpool(output=self.pool, **self.model)

    def write_images(self, pixels, **columns):
        """Save pictures and a table of them, and index it."""
        for at, picture in enumerate(pixels):
            Image.fromarray(picture).save(self.folder / f"image {at}.png")
        table = pd.DataFrame({"path": [f"image {at}.png" for at in range(len(pixels))], **columns})
        table.to_csv(self.folder / "t.csv", index=False)
        names = {"mask_column": "mask", "group_column": "group"}
        used = {key: column for key, column in names.items() if column in columns}
        index_images(self.folder / "images.parquet", table=self.folder / "t.csv", **used)

    def decompose(self, shards=1, views="centre", name="d"):
        """Features and contributions of all shards."""
        for shard in range(shards):
            features = self.folder / f"{name}-features-{shard}.zarr"
            how = {"views": views, "shard": shard, "shards": shards, "device": "cpu", **self.model}
            extract_features(self.folder / "images.parquet", output=features, **how)
            compute_contributions(features, self.pool, self.folder / f"{name}-{shard}.zarr")
        return tuple(self.folder / f"{name}-{shard}.zarr" for shard in range(shards))

    def embed(self, name, texts):
        embed_texts(output=self.folder / f"{name}.zarr", texts=texts, device="cpu", **self.model)
        return self.folder / f"{name}.zarr"

    def fit(self, unit, contributions):
        fit_directions(unit, contributions, self.pool, self.folder / f"{unit}.zarr", top_images=4, components=2)
        return self.folder / f"{unit}.zarr"

    def tabulate(self, unit, contributions):
        words = self.embed("words", ("a", "b", "c d"))
        assign_texts(unit, self.fit(unit, contributions), words, self.pool, self.folder / f"{unit}-texts.parquet", atoms=2)
        paths = (self.folder / f"{unit}.zarr", self.folder / f"{unit}-texts.parquet", self.pool)
        tabulate_units(unit, *paths, self.folder / f"{unit}s.parquet")
        return read_parquet(self.folder / f"{unit}s.parquet", f"{unit}s")

    def select(self, contributions, texts=("a", "b", "c"), k=9, **options):
        words = self.embed("classes", texts)
        select_pairs(words, self.fit("pair", contributions), self.pool, self.folder / "s.zarr", k=k, **options)
        return self.folder / "s.zarr"

    def segment(self, contributions, shard=0, **options):
        features = self.folder / f"d-features-{shard}.zarr"
        out = (self.folder / f"c-{shard}.parquet", self.folder / f"labels-{shard}")
        images, selection = self.folder / "images.parquet", self.folder / "s.zarr"
        options = {"methods": METHODS, **options}
        segment_images(images, features, selection, contributions, self.pool, *out, **options)
        return out


@pytest.fixture
def run(tmp_path, tiny_clip):
    return Run(tmp_path, tiny_clip)


def noise(count, height=70, width=90, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("unit", ["pair", "neuron", "head"])
@pytest.mark.parametrize("pixels", [noise(1), noise(1, 64, 64) * 3, [np.zeros((65, 201, 3), np.uint8)] * 2])
def test_one_image_and_equal_images_are_tabulated_as_what_does_not_vary(run, unit, pixels):
    run.write_images(pixels)
    table = run.tabulate(unit, run.decompose())
    assert len(table) == {"pair": 512, "neuron": 128, "head": 4}[unit]
    assert (table["std_norm"] == 0).all()
    assert (table["mean_norm"] > 0).any()
    if unit == "pair":
        assert table["explained"].isna().all()
        assert table["nearest_text"].notna().any()
    else:
        assert table[["explained_1", "explained_2"]].isna().all(axis=None)
        assert table["nearest_text"].isna().all()  # nothing varies, so there is no direction to name


def test_images_of_odd_sizes_are_segmented_at_their_own_size(run):
    shapes = [(64, 64), (131, 67), (70, 333), (20, 31)]
    pixels = [np.random.default_rng(at).integers(0, 256, (*shape, 3), dtype=np.uint8) for at, shape in enumerate(shapes)]
    for at, shape in enumerate(shapes):
        Image.fromarray(np.full(shape, at % 3, np.uint8)).save(run.folder / f"m{at}.png")
    run.write_images(pixels, mask=[f"m{at}.png" for at in range(4)])
    contributions = run.decompose(views="sliding")
    run.select(contributions)
    confusion, labels = run.segment(contributions)
    score_segmentation((confusion,), run.pool, ("a", "b", "c"), run.folder / "s.csv", run.folder / "s.parquet")
    scores = pd.read_csv(run.folder / "s.csv")
    assert scores["method"].tolist() == list(METHODS)
    assert (scores["pixels"] == sum(height * width for height, width in shapes)).all()
    assert scores.set_index("method")["k"].notna().to_dict() == {name: name.startswith("nad") for name in METHODS}
    for at, shape in enumerate(shapes):
        assert Image.open(labels / "nad" / f"{at:06d}.png").size == shape[::-1]
    draw_overlays(run.folder / "images.parquet", (labels,), ("a", "b", "c"), run.folder / "o", METHODS, count=2)
    assert [path.name for path in sorted((run.folder / "o").iterdir())] == ["000000.png", "000003.png"]
    with pytest.raises(NadpipeError, match="label map is in none of the given folders"):
        draw_overlays(run.folder / "images.parquet", (run.folder,), ("a", "b", "c"), run.folder / "p", ("x",), count=2)


def test_any_number_of_shards_gives_the_same_directions(run):
    run.write_images(noise(7))
    one = xr.open_zarr(run.fit("neuron", run.decompose(shards=1))).load()
    three = xr.open_zarr(run.fit("neuron", run.decompose(shards=3, name="e"))).load()
    for name in ("mean_norm", "std_norm", "top_norm", "explained"):
        np.testing.assert_allclose(three[name], one[name], rtol=1e-3, atol=1e-4)
    first, second = (np.asarray(store["direction"])[:, 0] for store in (one, three))
    np.testing.assert_allclose((first * second).sum(1), np.linalg.norm(first, axis=1), atol=1e-4)
    assert (np.linalg.norm(first, axis=1) > 0.9).mean() > 0.3


def test_shards_must_be_whole_and_of_one_data_set(run):
    run.write_images(noise(4))
    first = run.decompose(shards=2)
    with pytest.raises(NadpipeError, match=r"shards \[0\] were given, expected 0 to 1, each once"):
        run.fit("pair", first[:1])
    with pytest.raises(NadpipeError, match=r"shards \[1, 1\] were given"):
        run.fit("pair", (first[1], first[1]))
    run.write_images(noise(5))
    with pytest.raises(NadpipeError, match="is a shard of other images"):
        run.fit("pair", (first[0], run.decompose(shards=2, name="other")[1]))


def test_selections_that_cannot_be_made_say_why(run):
    run.write_images(noise(3))
    contributions = run.decompose()
    with pytest.raises(NadpipeError, match=r"k is 513, the model has 512 pairs \(4 heads × 128 neurons\)"):
        run.select(contributions, k=513)
    with pytest.raises(NadpipeError, match="equals the mean of the set it is centred with"):
        run.select(contributions, texts=("a",))
    run.select(contributions, texts=("a",), reference=run.embed("words", ("a", "b", "c d")))


def test_segmentations_that_cannot_be_made_say_why(run):
    Image.fromarray(np.full((70, 90), 7, np.uint8)).save(run.folder / "m.png")
    run.write_images(noise(2), mask=["m.png", None])
    contributions = run.decompose()
    run.select(contributions)
    with pytest.raises(NadpipeError, match=r"m\.png: mask holds 7; allowed are 0 to 2 and 255"):
        run.segment(contributions)
    with pytest.raises(NadpipeError, match=r"image 1 \(.*image 1.png\) has no mask"):
        run.segment(contributions, ignore=7)
    with pytest.raises(NadpipeError, match="no method x; there are nad, nad_centred"):
        run.segment(contributions, methods=("x",))
    with pytest.raises(NadpipeError, match=r"segmentation.sink: 4 is no spatial token; the model has 0 to 3"):
        run.segment(contributions, sink=4)
    assert not (run.folder / "labels-0").exists()
    run.write_images(noise(1), mask=["m.png"])
    contributions = run.decompose()
    confusion, _ = run.segment(contributions, ignore=7, sink=2)
    with pytest.raises(NadpipeError, match="no labelled pixels in the data set"):
        score_segmentation((confusion,), run.pool, ("a", "b", "c"), run.folder / "s.csv", run.folder / "s.parquet")


def test_shifts_follow_the_labels_of_the_table_and_refuse_wrong_ones(run):
    texts = ("value", "score", "a")  # names of columns inside the stage
    run.write_images(noise(6), group=[9, 9, 9, 10, 10, 10], value=[0, 1, 0, 1, 1, 0], score=[0, 1, 0, 1, 1, 2])
    contributions = run.decompose()
    run.tabulate("pair", contributions)
    run.select(contributions, texts)
    paths = (run.folder / "images.parquet", contributions, run.folder / "s.zarr", run.pool)
    with pytest.raises(NadpipeError, match="column score is the label of a concept and must hold 0 and 1 alone"):
        score_shift(*paths, run.folder / "shift.csv", run.folder / "scores.parquet")
    run.write_images(noise(6), group=[9, 9, 9, 10, 10, 10], value=[0, 1, 0, 1, 1, 0])
    score_shift(*paths, run.folder / "shift.csv", run.folder / "scores.parquet", resamples=100)
    table = pd.read_csv(run.folder / "shift.csv")
    assert table["reference"].unique().tolist() == [9]
    assert set(table["concept"]) == set(texts)
    assert table.set_index("concept")["label_rate"].notna().to_dict() == {"value": True, "score": False, "a": False}
    ranked = run.folder / "ranked.parquet"
    rank_shifts(run.folder / "images.parquet", contributions, run.folder / "pairs.parquet", run.pool, ranked)
    effect = read_parquet(ranked, "shift_pairs")["effect"].abs().dropna()
    assert effect.is_monotonic_decreasing


def test_artifacts_of_another_model_are_refused_by_the_next_stage(run, tiny_clip):
    run.write_images(noise(2))
    contributions = run.decompose()
    (run.folder / "m.json").write_text(json.dumps(TINY | {"quick_gelu": True}))
    shutil.rmtree(run.pool)
    export_attnpool(output=run.pool, **run.model)
    with pytest.raises(NadpipeError, match=r"d-0\.zarr: is for model m [0-9a-f]{8}, this run is m [0-9a-f]{8}"):
        run.fit("pair", contributions)


def test_features_of_too_low_a_precision_fail_with_the_error(run):
    run.write_images(noise(2))
    features = run.folder / "d-features-0.zarr"
    run.decompose()
    with pytest.raises(NadpipeError, match=r"sum to the embedding of view \d only within \d\.\de-\d+ of its norm"):
        compute_contributions(features, run.pool, run.folder / "x.zarr", tolerance=1e-12)
    assert not (run.folder / "x.zarr").exists()


def test_texts_that_cannot_be_embedded_say_why(run):
    empty, broken = run.folder / "empty.txt", run.folder / "broken.txt"
    empty.write_text("\n \n")
    broken.write_bytes(b"\xff\xfe\x00")
    for options, message in [
        ({}, "give either --texts or --file"),
        ({"texts": ("a", "b", "a")}, "--texts: 1 texts are listed twice, first 'a'"),
        ({"file": empty}, r"empty\.txt: no texts"),
        ({"file": broken}, r"broken\.txt: not a readable UTF-8 text file"),
        ({"file": run.folder / "none.txt"}, r"none\.txt: not a readable"),
    ]:
        with pytest.raises(NadpipeError, match=message):
            embed_texts(output=run.folder / "t.zarr", device="cpu", **run.model, **options)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_log(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress.track(range(3), "counting", "thing")) == [0, 1, 2]
    text = stream.getvalue()
    assert "counting" in text
    assert "thing/s" in text
    assert ("\r" in text) == stream.isatty()
    assert ("3/3 thing, " in text) != stream.isatty()
