"""All stages in a row on a tiny random model, called as functions: extreme data sets, and every message of bad input."""

import io
import json
import os
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import xarray as xr
from conftest import TINY
from PIL import Image
from safetensors.torch import save_file

import nadpipe.stages.extract_features as extract_features_module
from nadpipe import models, progress, segmentation
from nadpipe.artifacts import Stamp, create_zarr, open_zarr, read_parquet, write_parquet
from nadpipe.attnpool import residual, sum_pairs
from nadpipe.errors import NadpipeError
from nadpipe.inputs import read_pool
from nadpipe.stages.accumulate_pairs import accumulate_pairs
from nadpipe.stages.assign_texts import assign_texts
from nadpipe.stages.compute_contributions import compute_contributions
from nadpipe.stages.correlate_texts import correlate_texts
from nadpipe.stages.draw_contact_sheets import draw_contact_sheets
from nadpipe.stages.draw_overlays import draw_overlays
from nadpipe.stages.draw_retrieval import draw_retrieval
from nadpipe.stages.embed_texts import embed_texts
from nadpipe.stages.export_attnpool import export_attnpool
from nadpipe.stages.extract_features import extract_features
from nadpipe.stages.fit_directions import fit_directions
from nadpipe.stages.index_classes import index_classes
from nadpipe.stages.index_images import index_images
from nadpipe.stages.measure_faithfulness import measure_faithfulness
from nadpipe.stages.measure_naming import measure_naming
from nadpipe.stages.measure_polysemanticity import measure_polysemanticity
from nadpipe.stages.measure_reconstruction import measure_reconstruction
from nadpipe.stages.measure_registers import measure_registers
from nadpipe.stages.measure_sparse_text import measure_sparse_text
from nadpipe.stages.measure_sparsity import measure_sparsity
from nadpipe.stages.plot_classes import plot_classes
from nadpipe.stages.rank_shifts import rank_shifts
from nadpipe.stages.score_batch import score_batch
from nadpipe.stages.score_segmentation import score_segmentation
from nadpipe.stages.score_shift import score_shift
from nadpipe.stages.segment_images import segment_images
from nadpipe.stages.select_pairs import select_pairs
from nadpipe.stages.tabulate_units import tabulate_units

METHODS = ("nad", "nad_centred", "neurons", "maskclip", "sclip", "attention")


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
        index_images("table", self.folder / "t.csv", self.folder / "images.parquet", **used)

    def decompose(self, shards=1, views="centre", name="d", dtype="float32", **options):
        """Features and contributions of all shards."""
        for shard in range(shards):
            features = self.folder / f"{name}-features-{shard}.zarr"
            how = {"views": views, "shard": shard, "shards": shards, "device": "cpu", **self.model}
            extract_features(self.folder / "images.parquet", output=features, dtype=dtype, **how, **options)
            compute_contributions(features, self.pool, self.folder / f"{name}-{shard}.zarr", dtype=dtype)
        return tuple(self.folder / f"{name}-{shard}.zarr" for shard in range(shards))

    def embed(self, name, texts):
        embed_texts(output=self.folder / f"{name}.zarr", texts=texts, device="cpu", **self.model)
        return self.folder / f"{name}.zarr"

    def accumulate(self, contributions):
        """Moments of all shards."""
        moments = tuple(path.with_name(f"moments-{path.name}") for path in contributions)
        for path, output in zip(contributions, moments, strict=True):
            accumulate_pairs(path, self.pool, output, top_images=4)
        return moments

    def fit(self, unit, contributions):
        moments = self.accumulate(contributions)
        fit_directions(unit, moments, self.pool, self.folder / f"{unit}.zarr", contributions, components=2)
        return self.folder / f"{unit}.zarr"

    def tabulate(self, unit, contributions):
        words = self.embed("words", ("a", "b", "c d"))
        assign_texts(unit, self.fit(unit, contributions), words, self.pool, self.folder / f"{unit}-texts.parquet", atoms=2)
        paths = (self.folder / f"{unit}.zarr", self.folder / f"{unit}-texts.parquet", self.pool)
        correlated = self.folder / "correlated.parquet" if unit == "pair" else None
        if correlated:
            correlate_texts(contributions, self.folder / "pair.zarr", words, self.pool, correlated)
        tabulate_units(unit, *paths, self.folder / f"{unit}s.parquet", correlated)
        return read_parquet(self.folder / f"{unit}s.parquet", f"{unit}s")

    def classes(self, names=("a", "b", "c"), **options):
        """The table of classes, and their names embedded."""
        path = self.folder / "classes.parquet"
        index_classes("table", self.folder / "t.csv", path, classes=names, **options)
        embed_texts(output=self.folder / "classes.zarr", classes=path, device="cpu", **self.model)
        return path

    def select(self, contributions, texts=("a", "b", "c"), k=9, **options):
        words = self.embed("classes", texts)
        select_pairs(words, self.fit("pair", contributions), self.pool, self.folder / "s.zarr", k=k, **options)
        return self.folder / "s.zarr"

    def segment(self, contributions, shard=0, **options):
        features = self.folder / f"d-features-{shard}.zarr"
        out = (self.folder / f"c-{shard}.parquet", self.folder / f"labels-{shard}")
        images, classes, selection = self.folder / "images.parquet", self.folder / "classes.parquet", self.folder / "s.zarr"
        registers = self.folder / "registers.parquet"
        seen = tuple(path.with_name(path.name.replace("-", "-features-")) for path in contributions)
        measure_registers(seen, self.pool, registers, self.folder / "registers.png", images=3)
        options = {"methods": METHODS, **options}
        segment_images(images, classes, features, selection, contributions, registers, self.pool, *out, **options)
        return out

    def score(self, *confusion):
        """The table of methods."""
        outputs = (self.folder / name for name in ("s.csv", "s.parquet", "d.parquet"))
        score_segmentation(confusion, (self.folder / "classes.parquet",), self.pool, *outputs, resamples=100)
        return pd.read_csv(self.folder / "s.csv")


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
    classes = run.classes()
    run.select(contributions)
    confusion, labels = run.segment(contributions, k=(4, 9))
    scores = run.score(confusion)
    assert scores["method"].tolist() == ["nad", "nad", "nad_centred", "nad_centred", "neurons", "neurons", *METHODS[3:]]
    assert scores["k"].fillna(0).tolist() == [4, 9, 4, 9, 4, 9, 0, 0, 0]
    assert (scores["pixels"] == sum(height * width for height, width in shapes)).all()
    assert (scores["miou_low"] <= scores["miou_high"]).all()
    differences = read_parquet(run.folder / "d.parquet", "differences")
    assert len(differences) == 9 * 8 / 2
    two = differences[(differences["method"] == "nad") & (differences["k"] == 9) & (differences["other_method"] == "maskclip")]
    miou = scores.set_index(["method", "k"])["miou"].to_dict()
    assert two["difference"].item() == pytest.approx(miou["nad", 9] - scores.set_index("method")["miou"]["maskclip"], abs=1e-6)
    for at, shape in enumerate(shapes):
        assert Image.open(labels / "nad-k9" / f"{at:06d}.png").size == shape[::-1]
    images = run.folder / "images.parquet"
    (labels / ".snakemake_timestamp").touch()
    draw_overlays(images, classes, (labels,), run.folder / "o", count=2)
    assert [path.name for path in sorted((run.folder / "o").iterdir())] == ["000000.png", "000003.png"]
    draw_contact_sheets(images, classes, (confusion,), (labels,), run.folder / "sheets", count=2)
    assert {path.stem for path in (run.folder / "sheets").iterdir()} == {path.name for path in labels.glob("[a-z]*")}
    plot_classes(run.folder / "s.parquet", run.folder / "classes.png")
    assert Image.open(run.folder / "classes.png").width > 300
    with pytest.raises(NadpipeError, match="no data set other"):
        plot_classes(run.folder / "s.parquet", run.folder / "other.png", dataset="other")
    with pytest.raises(NadpipeError, match="label map is in none of the given folders"):
        draw_contact_sheets(images, classes, (confusion,), (run.folder / "o",), run.folder / "p", count=2)


def test_views_of_any_size_are_segmented_and_still_sum_to_their_embedding(run):
    Image.fromarray(np.zeros((70, 90), np.uint8)).save(run.folder / "m.png")
    run.write_images(noise(3), mask=["m.png"] * 3)
    own = run.decompose(views="sliding", name="own")
    larger = run.decompose(views="sliding", scale=2.4, crop=1.5)
    store = open_zarr(run.folder / "d-features-0.zarr", "features")
    assert store["activation"].shape[1] == 9  # crops of 96 pixels on a grid of 3 × 3
    assert set(store["resized_height"][:]) == {154}
    assert float(open_zarr(larger[0], "contributions")["residual"][:].max()) < 1e-5
    run.classes()
    run.select(own)
    confusion, _ = run.segment(own, sink=3)
    assert set(read_parquet(confusion, "confusion")["sink"]) == {8}  # south-east of 2 × 2, and of 3 × 3
    with pytest.raises(NadpipeError, match=r"segmentation.crop: crops of 64 pixels in images of short side 32"):
        run.decompose(views="sliding", name="x", scale=0.5)
    with pytest.raises(NadpipeError, match=r"segmentation.block: no block 1; the model's last stage has 0 to 0"):
        run.decompose(views="sliding", name="x", block=1)


def test_the_background_is_what_no_name_fits(run):
    Image.fromarray(np.zeros((70, 90), np.uint8)).save(run.folder / "m.png")
    run.write_images(noise(3), mask=["m.png"] * 3)
    contributions = run.decompose(views="sliding")
    path = run.classes(("background, sky", "a", "b"))
    assert open_zarr(run.folder / "classes.zarr", "text").texts() == ["background", "sky", "a", "b"]
    embed_texts(output=run.folder / "classes.zarr", classes=path, background_names=False, device="cpu", **run.model)
    select_pairs(run.folder / "classes.zarr", run.fit("pair", contributions), run.pool, run.folder / "s.zarr", k=9)
    with pytest.raises(NadpipeError, match="was made for other texts than the names of"):
        run.segment(contributions)
    confusion, _ = run.segment(contributions, background_names=False)
    assert set(read_parquet(confusion, "confusion")["predicted_class"]) <= {1, 2}
    confusion, _ = run.segment(contributions, background_names=False, background_threshold=0.9, temperature=1e-4)
    assert set(read_parquet(confusion, "confusion")["predicted_class"]) == {0}
    assert (run.score(confusion)["pixel_accuracy"] == 1).all()
    run.classes(("a", "b", "c"))
    run.select(contributions)
    with pytest.raises(NadpipeError, match=r"datasets.segmentation.background_threshold: no class is called background"):
        run.segment(contributions, background_threshold=0.5)


def test_any_number_of_shards_gives_the_same_directions(run):
    run.write_images(noise(17))
    one, *others = (xr.open_zarr(run.fit("neuron", run.decompose(shards, name=f"s{shards}"))).load() for shards in (1, 3, 16))
    for other in others:
        for name in ("mean_norm", "std_norm", "top_norm", "explained"):
            np.testing.assert_allclose(other[name], one[name], rtol=1e-3, atol=1e-4)
        first, second = (np.asarray(store["direction"])[:, 0] for store in (one, other))
        np.testing.assert_allclose((first * second).sum(1), np.linalg.norm(first, axis=1), atol=1e-4)
        assert (np.linalg.norm(first, axis=1) > 0.9).mean() > 0.3


def test_any_number_of_shards_segments_and_scores_alike(run):
    """Images one by one are the same bytes in any shard; sums over images are within rounding."""
    pixels = noise(17)
    masks = [f"m{at}.png" for at in range(17)]
    for at, name in enumerate(masks):
        values = np.random.default_rng(at).integers(0, 3, (70, 90), dtype=np.uint8)
        Image.fromarray(values).save(run.folder / name)
    run.write_images(pixels, mask=masks)
    run.classes()
    found = {}
    for shards in (1, 3, 16):
        contributions = run.decompose(shards, views="sliding", batch_size=1)
        features = [open_zarr(run.folder / f"d-features-{shard}.zarr", "features") for shard in range(shards)]
        whole = {name: np.concatenate([store[name][:] for store in features]) for name in features[0].group.array_keys()}
        coefficients = np.concatenate([open_zarr(path, "contributions")["coefficient"][:] for path in contributions])
        run.select(contributions)
        made = [run.segment(contributions, shard) for shard in range(shards)]
        labels = {path.relative_to(folder): path.read_bytes() for _, folder in made for path in folder.rglob("*.png")}
        found[shards] = whole, coefficients, labels, run.score(*(confusion for confusion, _ in made))
    for shards in (3, 16):
        for name in ("activation", "embedding", "image_id", "crop_top", "crop_left"):
            np.testing.assert_array_equal(found[shards][0][name], found[1][0][name])
        np.testing.assert_allclose(found[shards][1], found[1][1], rtol=1e-4, atol=1e-5)
        assert found[shards][2].keys() == found[1][2].keys()
        same = [found[shards][2][name] == content for name, content in found[1][2].items()]
        assert np.mean(same) > 0.95
        pd.testing.assert_frame_equal(found[shards][3], found[1][3], rtol=1e-3)


def test_any_number_of_threads_gives_the_same_within_rounding(run):
    run.write_images(noise(6))
    before, made = torch.get_num_threads(), {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            [contributions] = run.decompose(name=f"t{threads}")
            store = open_zarr(contributions, "contributions")
            made[threads] = store["coefficient"][:], store["embedding"][:], run.tabulate("pair", (contributions,))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(made[1][:2], made[2][:2], strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5 * np.abs(one).max())
    numbers = ["write_norm", "coefficient_mean", "coefficient_std", "std_norm", "top_norm"]
    np.testing.assert_allclose(made[1][2][numbers], made[2][2][numbers], rtol=1e-4, atol=1e-6)


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


@pytest.mark.parametrize("unit", ["pair", "neuron"])
def test_moments_must_be_those_of_the_contributions(run, unit):
    run.write_images(noise(4))
    contributions = run.decompose(shards=2)
    moments = run.accumulate(contributions)
    with pytest.raises(NadpipeError, match=r"shards \[0\] were given, expected 0 to 1, each once"):
        fit_directions(unit, moments[:1], run.pool, run.folder / "x.zarr", contributions)
    accumulate_pairs(contributions[1], run.pool, moments[1], top_images=3)
    with pytest.raises(
        NadpipeError, match=r"moments-d-1\.zarr: was made with top_images 3, .*moments-d-0\.zarr 4; accumulate all"
    ):
        fit_directions(unit, moments, run.pool, run.folder / "x.zarr", contributions)
    moments = run.accumulate(contributions)
    (run.folder / "more").mkdir()
    for path in run.folder.glob("image *.png"):
        shutil.copy(path, run.folder / "more" / path.name)
    index_images("tree", run.folder / "more", run.folder / "images.parquet")
    others = run.decompose(shards=2, name="other")  # as many views, of other paths
    if unit == "neuron":
        with pytest.raises(NadpipeError, match=r"other-0\.zarr: is of other images than"):
            fit_directions(unit, moments, run.pool, run.folder / "x.zarr", others)
    assert not (run.folder / "x.zarr").exists()


def test_half_precision_takes_half_the_space_and_states_its_error(run):
    run.write_images(noise(6))
    [whole], [half] = run.decompose(), run.decompose(name="half", dtype="float16")
    for kind, array, stores in [
        ("features", "activation", ("d-features-0.zarr", "half-features-0.zarr")),
        ("contributions", "coefficient", (whole, half)),
    ]:
        full, low = (open_zarr(run.folder / name, kind) for name in stores)
        assert low[array].dtype == np.float16
        np.testing.assert_allclose(low[array][:], full[array][:], rtol=3e-3, atol=1e-4)
        assert (full["rounding"][:] == 0).all()
        assert ((low["rounding"][:] > 1e-6) & (low["rounding"][:] < 1e-2)).all()
    features, store = open_zarr(run.folder / "half-features-0.zarr", "features"), open_zarr(half, "contributions")
    np.testing.assert_allclose(store["residual"][:], features["rounding"][:], atol=1e-6)
    assert (store["residual"][:] > 1e-5).any()  # so the tolerance alone would refuse it
    pool, _ = read_pool(run.pool)
    kept = sum_pairs(torch.from_numpy(store["coefficient"][:]).float(), pool)
    expected = residual(kept, torch.from_numpy(store["embedding"][:]))
    np.testing.assert_allclose(store["rounding"][:], expected, atol=1e-6)
    assert run.tabulate("pair", (half,))["std_norm"].max() > 0


def test_half_precision_that_overflows_is_refused(run):
    run.write_images(noise(2))
    run.decompose()
    with create_zarr(
        run.folder / "o.zarr", "selection", Stamp(), {"text": 1, "rank": 2, "embed": 3}, {"query": "float16"}
    ) as made:
        with pytest.raises(NadpipeError, match=r"o\.zarr: query reaches 7e\+04, more than float16 holds; use float32"):
            made.as_stored("query", torch.full((1, 3), 7e4))
        for name in ("head", "neuron", "cosine", "query"):
            made.write(name, np.zeros((1, 3 if name == "query" else 2)))


def test_bfloat16_features_state_their_error_and_still_sum_up(run, capsys):
    run.write_images(noise(5))
    [contributions] = run.decompose(precision="bfloat16")
    features = open_zarr(run.folder / "d-features-0.zarr", "features")
    assert 1e-5 < features.attributes["encode_image_error"] < 0.1
    told = r"bfloat16: embeddings of the first 5 views are within \d\.\de-\d\d of encode_image in float32"
    assert re.search(told, capsys.readouterr().err)
    assert open_zarr(contributions, "contributions")["residual"][:].max() < 1e-5


def test_a_fast_tower_that_is_another_function_is_noticed(run, monkeypatch):
    run.write_images(noise(3))
    run.decompose()
    assert open_zarr(run.folder / "d-features-0.zarr", "features").attributes["encode_image_error"] < 1e-5
    monkeypatch.setattr(models, "fold_batch_norms", lambda visual: visual.layer4[0].bn3.weight.mul_(1.001) is None or visual)
    with pytest.raises(
        NadpipeError, match=r"float32: embeddings of the first 3 views are within \d.* more than rounding explains"
    ):
        run.decompose(name="x")
    assert not (run.folder / "x-features-0.zarr").exists()


def test_a_worker_that_dies_is_told_in_one_line(run, monkeypatch):
    run.write_images(noise(3))
    monkeypatch.setattr(extract_features_module._Crops, "__getitem__", lambda crops, at: os._exit(1))
    with pytest.raises(NadpipeError, match=r"^features\.workers: a process that decodes images died \(.*\); use fewer, or 0$"):
        run.decompose(workers=1)
    assert not (run.folder / "d-features-0.zarr").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_processes_and_batch_sizes_change_nothing(run, workers):
    run.write_images(noise(7))
    run.decompose()
    run.decompose(name="e", workers=workers, batch_size=3)
    one, other = (open_zarr(run.folder / f"{name}-features-0.zarr", "features") for name in "de")
    np.testing.assert_allclose(other["activation"][:], one["activation"][:], atol=1e-5)
    np.testing.assert_allclose(other["embedding"][:], one["embedding"][:], atol=1e-5)
    (run.folder / "image 5.png").write_bytes(b"no image")
    with pytest.raises(NadpipeError, match=r"image 5\.png: not a readable image"):
        run.decompose(name="f", workers=workers, batch_size=3)
    assert not (run.folder / "f-features-0.zarr").exists()


def test_only_the_largest_units_get_a_sparse_code_when_asked(run):
    run.write_images(noise(6))
    contributions = run.decompose()
    whole = run.tabulate("pair", contributions)
    path = run.folder / "few.parquet"
    stores = (run.folder / "pair.zarr", run.folder / "words.zarr", run.pool)
    assign_texts("pair", *stores, path, atoms=2, sparse_share=0.1)
    few = read_parquet(path, "pair assignments")
    sparse = few[few["kind"] == "sparse"].set_index(["head", "neuron"]).index.unique()
    largest = whole[whole["contribution_rank"] <= 52].set_index(["head", "neuron"]).index  # of 512, rounded up
    assert set(sparse) == set(largest)
    assert (few["kind"] == "nearest").sum() == 3 * whole["nearest_text"].notna().sum()
    everything = read_parquet(run.folder / "pair-texts.parquet", "pair assignments")
    kept = everything[(everything["kind"] == "nearest") | pd.MultiIndex.from_frame(everything[["head", "neuron"]]).isin(sparse)]
    pd.testing.assert_frame_equal(few, kept.reset_index(drop=True))


def test_selections_that_cannot_be_made_say_why(run):
    run.write_images(noise(3))
    contributions = run.decompose()
    with pytest.raises(NadpipeError, match=r"k is 513, the model has 512 pairs \(4 heads × 128 neurons\)"):
        run.select(contributions, k=513)
    with pytest.raises(NadpipeError, match="equals the mean of the set it is centred with"):
        run.select(contributions, texts=("a",))
    run.select(contributions, texts=("a",), reference=run.embed("words", ("a", "b", "c d")))


def test_segmentations_that_cannot_be_made_say_why(run, monkeypatch):
    Image.fromarray(np.full((70, 90), 7, np.uint8)).save(run.folder / "m.png")
    run.write_images(noise(2), mask=["m.png", None])
    contributions = run.decompose(views="sliding")
    run.classes()
    run.select(contributions)
    with pytest.raises(NadpipeError, match=r"m\.png: mask holds 7"):
        run.segment(contributions)
    run.classes(ignore=7)
    with pytest.raises(NadpipeError, match=r"image 1 \(.*image 1.png\) has no mask"):
        run.segment(contributions)
    with pytest.raises(NadpipeError, match="no method x; there are nad, nad_centred"):
        run.segment(contributions, methods=("x",))
    with pytest.raises(NadpipeError, match=r"segmentation.sink: 4 is no spatial token; the model has 0 to 3"):
        run.segment(contributions, sink=4)
    run.decompose()
    with pytest.raises(NadpipeError, match=r"d-features-0\.zarr: has one crop of each image, which does not cover it"):
        run.segment(contributions)
    assert not (run.folder / "labels-0").exists()
    run.write_images(noise(1), mask=["m.png"])
    contributions = run.decompose(views="sliding")
    confusion, _ = run.segment(contributions, sink=2)
    with pytest.raises(NadpipeError, match="data set segmentation: no labelled pixels"):
        run.score(confusion)
    overflowing = segmentation.Method(lambda tokens, pairs: segmentation.heads(tokens, pairs) / 0, selects=True)
    monkeypatch.setitem(segmentation.METHODS, "nad", overflowing)
    with pytest.raises(NadpipeError, match=r"d-features-0\.zarr: nad-k9 gives image 0 logits that are no numbers"):
        run.segment(contributions, sink=2)


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
    assert table["reference"].dropna().unique().tolist() == [9]
    assert set(table["concept"]) == set(texts)
    assert table.set_index("concept")["label_rate"].notna().to_dict() == {"value": True, "score": False, "a": False}
    ranked = run.folder / "ranked.parquet"
    rank_shifts(run.folder / "images.parquet", contributions, run.folder / "pairs.parquet", run.pool, ranked)
    found = read_parquet(ranked, "discovered")
    assert found["effect"].abs().dropna().is_monotonic_decreasing
    assert found[["n", "n_reference", "small"]].drop_duplicates().to_numpy().tolist() == [[3, 3, True]]
    first = found.iloc[0]
    of_pair = np.concatenate(
        [open_zarr(path, "contributions")["coefficient"][:, first["head"], first["neuron"]] for path in contributions]
    )
    toward = np.sign(of_pair[3:].mean() - of_pair[:3].mean()) * of_pair[3:]
    assert first["images"].tolist() == (3 + np.argsort(-toward)).tolist()


@pytest.mark.parametrize(
    ("groups", "rows", "compared"),
    [(["a"] * 6, 0, 0), (["a"] * 5 + ["b"], 2, 1), (list("abcdef"), 6, 5), ([None] * 6, 0, 0)],
    ids=["one group", "one image in a group", "groups of one image", "no group"],
)
def test_shifts_of_few_groups_and_few_images_are_told_as_such(run, groups, rows, compared):
    run.write_images(noise(6), group=groups)
    contributions = run.decompose()
    run.tabulate("pair", contributions)
    run.select(contributions, ("a", "b"))
    outputs = (run.folder / "shift.csv", run.folder / "scores.parquet")
    arguments = (run.folder / "images.parquet", contributions)
    stages = [
        lambda: score_shift(*arguments, run.folder / "s.zarr", run.pool, *outputs, resamples=100),
        lambda: rank_shifts(*arguments, run.folder / "pairs.parquet", run.pool, run.folder / "ranked.parquet"),
    ]
    if not rows:
        for stage in stages:
            with pytest.raises(NadpipeError, match=r"all images are in group a; a shift needs two groups|no group"):
                stage()
        return
    stages[0]()
    table = pd.read_csv(outputs[0])
    assert len(table) == 2 * 2 * rows  # concepts and scores
    assert table["reference"].notna().sum() == 2 * 2 * compared
    assert table["small"].all()
    stages[1]()
    found = read_parquet(run.folder / "ranked.parquet", "discovered")
    assert found["group"].nunique() == compared


def test_a_batch_is_compared_with_stored_scores_as_a_group_of_the_same_images_is(run):
    run.write_images(noise(8), group=[1] * 4 + [2] * 4, a=[0, 1] * 4)
    contributions = run.decompose(name="all")
    run.tabulate("pair", contributions)
    run.select(contributions, ("a", "b"))
    everything = (run.folder / "images.parquet", contributions, run.folder / "s.zarr", run.pool)
    score_shift(*everything, run.folder / "shift.csv", run.folder / "scores.parquet", resamples=100)
    run.write_images(noise(8)[4:], a=[0, 1] * 2)
    batch = run.decompose(name="batch")
    paths = (run.folder / "images.parquet", batch, run.folder / "s.zarr", run.folder / "scores.parquet", run.pool)
    score_batch(*paths, run.folder / "batch.csv", "april", resamples=100)
    whole, new = pd.read_csv(run.folder / "shift.csv").query("group == 2"), pd.read_csv(run.folder / "batch.csv")
    same = ["concept", "score", "n", "mean", "mean_low", "mean_high", "effect", "p", "label_rate"]
    pd.testing.assert_frame_equal(new[same], whole[same].reset_index(drop=True), rtol=1e-4)
    assert new["reference"].tolist() == [1] * 4
    assert new["group"].unique().tolist() == ["april (batch)"]
    score_batch(*paths, run.folder / "rolling.csv", "april", reference="rolling:2", resamples=100)
    assert pd.read_csv(run.folder / "rolling.csv")["reference"].tolist() == ["1 to 2"] * 4
    run.select(contributions, ("a", "c"))
    with pytest.raises(NadpipeError, match=r"scores\.parquet: has no scores of c; run score-shift with these concepts"):
        score_batch(*paths, run.folder / "batch.csv", "april")


def test_analyses_start_at_the_mean_and_end_at_the_model(run):
    """With all pairs, all directions and all of a code, embeddings are the model's own; with none, their mean."""
    labels = ["cat", "dog", None, "dog", "cat"] * 2
    run.write_images(noise(10), group=labels)
    index_images("table", run.folder / "t.csv", run.folder / "images.parquet", label_column="group")
    contributions = run.decompose(shards=2)
    for unit in ("pair", "neuron", "head"):
        run.tabulate(unit, contributions)
    embed_texts(output=run.folder / "labels.zarr", labels=run.folder / "images.parquet", device="cpu", **run.model)
    assert open_zarr(run.folder / "labels.zarr", "text").texts() == ["cat", "dog"]
    seen = (run.folder / "images.parquet", contributions, run.folder / "labels.zarr")
    units = [run.folder / f"{unit}.zarr" for unit in ("pair", "neuron", "head")]

    def outputs(name):
        return run.folder / f"{name}.csv", run.folder / f"{name}.png"

    measure_sparsity(*seen, *units[:2], run.pool, *outputs("sparsity"), shares=(0.1, 1.0), draws=2)
    sparsity = pd.read_csv(run.folder / "sparsity.csv").set_index(["unit", "kept", "draw", "share"])
    assert sparsity.xs(1.0, level="share")["relative_error"].max() < 1e-5
    assert set(sparsity["images"]) == {8}
    assert sparsity["pairs"].xs(0.1, level="share").groupby("unit").unique().map(list).to_dict() == {
        "neuron": [52],
        "pair": [51],
    }
    for unit in ("pair", "neuron"):
        energy = sparsity["energy"][unit]
        assert energy["top", 0, 0.1] > energy["random", 1, 0.1] > energy["bottom", 0, 0.1]
    measure_reconstruction(*seen, *units, run.pool, *outputs("reconstruction"))
    table = pd.read_csv(run.folder / "reconstruction.csv").set_index(["unit", "components"])
    assert table.index.tolist() == [(u, c) for u, n in (("pair", 1), ("neuron", 2), ("head", 2)) for c in range(n + 1)]
    assert table.loc[("pair", 1), "relative_error"] < 1e-5
    assert table.xs(0, level="components")["relative_error"].nunique() == 1
    for unit in ("neuron", "head"):
        assert table.loc[unit]["explained"].is_monotonic_increasing
    texts = [run.folder / f"{unit}-texts.parquet" for unit in ("pair", "neuron", "head")]
    measure_sparse_text(*seen, *units, *texts, run.folder / "words.zarr", run.pool, *outputs("sparse_text"), atoms=(1, 2, 99))
    coded = pd.read_csv(run.folder / "sparse_text.csv").set_index(["unit", "atoms"])
    assert coded.index.tolist() == [(unit, count) for unit in ("pair", "neuron", "head") for count in (0, 1, 2)]
    assert coded.loc["pair"]["explained"].is_monotonic_increasing
    for unit in ("pair", "neuron", "head"):  # a code is at most the direction that it stands for
        assert coded.loc[(unit, 2), "relative_error"] >= table.loc[(unit, 1), "relative_error"]
        assert coded.loc[(unit, 0), "relative_error"] == pytest.approx(table.loc[(unit, 0), "relative_error"])
    assert (coded["coded"] == 1).all()
    for name in ("sparsity", "reconstruction", "sparse_text"):
        assert Image.open(run.folder / f"{name}.png").width > 500
    with pytest.raises(NadpipeError, match="0 different labels; zero-shot"):
        index_images("table", run.folder / "t.csv", run.folder / "images.parquet")
        embed_texts(output=run.folder / "x.zarr", labels=run.folder / "images.parquet", device="cpu", **run.model)
    with pytest.raises(NadpipeError, match="no image has a label"):
        measure_sparsity(*seen, *units[:2], run.pool, *outputs("sparsity"))


def test_top_images_of_pairs_and_neurons(run):
    run.write_images(noise(12))
    contributions = run.decompose(shards=2)
    for unit in ("pair", "neuron"):
        run.tabulate(unit, contributions)
    inputs = [run.folder / name for name in ("pair.zarr", "neuron.zarr", "pairs.parquet", "neurons.parquet")]
    measure_polysemanticity(contributions, *inputs, run.pool, run.folder / "p.parquet", run.folder / "p.png", top=3)
    table = read_parquet(run.folder / "p.parquet", "polysemanticity")
    assert table["unit"].value_counts().to_dict() == {"pair": 512, "neuron": 128}
    pairs = table[table["unit"] == "pair"].dropna(subset="spread")
    assert pairs["spread"].between(-1e-5, 1.5 + 1e-5).all()
    row = pairs.astype({"head": int}).iloc[0]
    stores = [open_zarr(path, "contributions") for path in contributions]
    own = np.concatenate([store["coefficient"][:, row["head"], row["neuron"]] for store in stores])
    sign = open_zarr(run.folder / "pair.zarr", "pair directions")["sign"][row["head"], row["neuron"]]
    assert row["images"].tolist() == np.argsort(-own * sign, kind="stable")[:3].tolist()
    neuron = table[(table["unit"] == "neuron") & (table["neuron"] == row["neuron"])].iloc[0]
    assert row["parent_spread"] == neuron["spread"]
    assert row["overlap"] == pytest.approx(len(set(row["images"]) & set(neuron["images"])) / 3)
    draw_retrieval(run.folder / "images.parquet", run.folder / "p.parquet", run.folder / "sheets", neurons=2)
    assert len(list((run.folder / "sheets").glob("neuron-*.png"))) == 2
    with pytest.raises(NadpipeError, match=r"analyses.top: 7 top images of 12"):
        measure_polysemanticity(contributions, *inputs, run.pool, run.folder / "q.parquet", run.folder / "q.png", top=7)


def test_names_and_ablations_are_held_against_labels(run):
    run.write_images(noise(12), a=[0, 1] * 6, b=[1, 1, 0] * 4, other=range(12))
    contributions = run.decompose()
    run.tabulate("pair", contributions)
    run.select(contributions, ("a", "b"), k=400)
    images = run.folder / "images.parquet"
    names = (run.folder / "pair.zarr", run.folder / "pair-texts.parquet", run.folder / "correlated.parquet")
    measure_naming(images, contributions, *names, run.pool, run.folder / "n.csv", run.folder / "n.png")
    table = pd.read_csv(run.folder / "n.csv")
    assert table["rule"].unique().tolist() == ["nearest", "sparse", "correlated"]
    assert (table["attributes"] == 2).all()
    assert table["agreement"].between(0, 1).all()
    paths = (images, contributions, run.folder / "s.zarr", run.folder / "pair.zarr", run.pool)
    measure_faithfulness(*paths, run.folder / "f.csv", run.folder / "f.png", draws=2)
    matrix = pd.read_csv(run.folder / "f.csv")
    assert matrix["ablated"].unique().tolist() == ["a", "b", "random 1", "random 2"]
    assert matrix.groupby("measured")["auroc"].nunique().tolist() == [1, 1]
    assert (matrix["spread_kept"] < 1).any()
    run.write_images(noise(12))
    with pytest.raises(NadpipeError, match="no 0/1 column at all; naming needs labels of the images"):
        measure_naming(images, contributions, *names, run.pool, run.folder / "n.csv", run.folder / "n.png")


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
        ({}, "give one of --texts, --dictionary, --classes and --labels"),
        ({"texts": ("a",), "dictionary": str(empty)}, "give one of --texts, --dictionary, --classes and --labels"),
        ({"texts": ("a", "b", "a")}, "--texts: 1 texts are listed twice, first 'a'"),
        ({"dictionary": str(empty)}, r"empty\.txt: no texts"),
        ({"dictionary": str(broken)}, r"broken\.txt: not a readable UTF-8 text file"),
        ({"dictionary": str(run.folder / "none.txt")}, r"none\.txt: not a readable"),
        ({"dictionary": "wordfreq:many"}, "wordfreq:many: write wordfreq:<count>"),
        ({"texts": ("a",), "templates": ("{}", "imagenet")}, "each template holds {} once"),
        ({"texts": ("a",), "cache": empty}, r"empty\.txt: no folder for a cache"),
        ({"texts": ("a", "very " * 10_000 + "long")}, r"text 'very .*'… is longer than the model's 16 tokens; shorten it"),
        ({"texts": ("a " * 15,)}, r"longer than the model's 16 tokens"),
    ]:
        with pytest.raises(NadpipeError, match=message) as error:
            embed_texts(output=run.folder / "t.zarr", device="cpu", **run.model, **options)
        assert "\n" not in str(error.value)
        assert not (run.folder / "t.zarr").exists()


@pytest.fixture
def embed(run, monkeypatch):
    """Embed texts with a cache; returns the embeddings, and the texts that the model was run on."""
    asked = []
    module = sys.modules["nadpipe.stages.embed_texts"]
    counted = module.embed_prompts

    def count(model, texts, *rest):
        asked.extend(texts)
        return counted(model, texts, *rest)

    monkeypatch.setattr(module, "embed_prompts", count)

    def embed(texts=(), cache=run.folder / "cache", **options):
        asked.clear()
        path = run.folder / "cached.zarr"
        embed_texts(output=path, texts=tuple(texts), cache=cache, device="cpu", **run.model, **options)
        store = open_zarr(path, "text")
        assert dict(zip(store.texts(), store["embedding"][:], strict=True)).keys() == set(texts or store.texts())
        return store["embedding"][:], list(asked)

    return embed


def test_cached_texts_are_not_embedded_again(run, embed, capsys):
    templates = ("a photo of {}", "{}")
    plain, asked = embed("abc", cache=None, templates=templates)
    assert asked == ["a", "b", "c"]
    first, asked = embed("abc", templates=templates)
    assert asked == ["a", "b", "c"]
    np.testing.assert_array_equal(first, plain)
    files = {path: path.read_bytes() for path in (run.folder / "cache").rglob("*.*")}
    assert [path.suffix for path in files] == [".parquet"]
    capsys.readouterr()
    again, asked = embed("cab", templates=templates)
    assert asked == []
    assert "embedding texts, 3 of 3 from the cache" in capsys.readouterr().err
    np.testing.assert_array_equal(again, plain[[2, 0, 1]])
    more, asked = embed("axcb", templates=templates)
    assert asked == ["x"]
    assert "embedding texts, 3 of 4 from the cache" in capsys.readouterr().err
    np.testing.assert_array_equal(more[[0, 2, 3]], plain[[0, 2, 1]])
    np.testing.assert_allclose(more, embed("axcb", cache=None, templates=templates)[0], atol=1e-6)
    after = {path: path.read_bytes() for path in (run.folder / "cache").rglob("*.*")}
    assert len(after) == 2
    assert after.items() > files.items()  # a file once written stays as it is
    assert embed("xa", templates=templates)[1] == []


def test_a_named_dictionary_is_cached_text_by_text(run, embed):
    assert len(embed(dictionary="wordfreq:20")[1]) == 20
    found, asked = embed(dictionary="wordfreq:25")
    assert len(asked) == 5
    np.testing.assert_allclose(found, embed(dictionary="wordfreq:25", cache=None)[0], atol=1e-6)
    embed("a", templates=("imagenet-simple",), cache=None)
    simple = open_zarr(run.folder / "cached.zarr", "text").attributes["templates"]
    assert len(simple) == 7
    assert "itap of a {}." in simple


def test_another_model_template_set_or_code_shares_nothing(run, embed, monkeypatch):
    embed("ab")
    assert embed("ab", templates=("a photo of {}",))[1] == ["a", "b"]
    assert embed("ab", templates=("a photo of {}", "{}"))[1] == ["a", "b"]
    assert embed("ab", templates=("{}", "a photo of {}"))[1] == ["a", "b"]
    (run.folder / "m.json").write_text(json.dumps(TINY | {"quick_gelu": True}))
    quick, asked = embed("ab")
    assert asked == ["a", "b"]
    np.testing.assert_array_equal(quick, embed("ab")[0])
    (run.folder / "m.json").write_text(json.dumps(TINY))
    exact, asked = embed("ab")
    assert asked == []
    assert np.abs(exact - quick).max() > 1e-4
    monkeypatch.setattr(sys.modules["nadpipe.stages.embed_texts"], "code_fingerprint", lambda module: "edited")
    assert embed("ab")[1] == ["a", "b"]


def test_jobs_that_embed_the_same_texts_write_files_of_their_own(run):
    files = []
    for name in ("one", "two"):
        cache = run.folder / f"cache of {name}"  # as if neither had seen the other's file yet
        embed_texts(output=run.folder / f"{name}.zarr", texts=("a", "b"), cache=cache, device="cpu", **run.model)
        files += [path.relative_to(cache) for path in cache.rglob("*.parquet")]
    assert len(set(files)) == 2
    assert len({file.parent for file in files}) == 1


def test_a_damaged_or_foreign_file_in_the_cache_is_named(run, embed):
    embed("ab")
    (file,) = (run.folder / "cache").rglob("*.parquet")
    good = file.read_bytes()
    (run.folder / "m.json").write_text(json.dumps(TINY | {"quick_gelu": True}))
    embed("ab")
    (of_another_model,) = set((run.folder / "cache").rglob("*.parquet")) - {file}
    (run.folder / "m.json").write_text(json.dumps(TINY))
    table, held = read_parquet(file, "embedded texts"), json.loads(pq.read_schema(file).metadata[b"nadpipe"])
    stamp = Stamp(*(held[name] for name in ("model", "architecture", "code")))
    long, wide = table.copy(), table.copy()
    long["embedding"] = [row * 1.1 for row in table["embedding"]]
    wide["embedding"] = [np.append(row, np.float32(0)) for row in table["embedding"]]
    uneven, absent = table.copy(), table.copy()
    uneven["embedding"] = [table["embedding"][0], table["embedding"][1][:-1]]
    absent["embedding"] = [table["embedding"][0], None]
    contents = [good[: len(good) // 2], b"", b"PAR1 no", of_another_model.read_bytes()]
    for broken in (long, wide, uneven, absent):
        write_parquet(run.folder / "broken.parquet", "embedded texts", broken, stamp)
        contents.append((run.folder / "broken.parquet").read_bytes())
    pd.DataFrame({"text": ["a"]}).to_parquet(run.folder / "foreign.parquet")
    contents.append((run.folder / "foreign.parquet").read_bytes())
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(NadpipeError) as error:
            embed("ab")
        assert str(error.value).startswith(f"{file}: damaged or foreign file in the cache, delete it (")
        assert "make it" not in str(error.value)  # by Snakemake, as other artifacts are
        assert "\n" not in str(error.value)
    file.unlink()
    assert embed("ab")[1] == ["a", "b"]


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
