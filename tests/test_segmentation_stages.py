"""Stages of segmentation on a tiny random model: sizes, background, shards, wrong input."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ink
from PIL import Image
from stage_run import METHODS, noise

from nadpipe.circuit import segmentation
from nadpipe.data.views import OPENCV, Box, crop_pixels
from nadpipe.errors import NadpipeError
from nadpipe.stages.draw_contact_sheets import draw_contact_sheets
from nadpipe.stages.draw_overlays import draw_overlays
from nadpipe.stages.embed_texts import embed_texts
from nadpipe.stages.measure_registers import measure_registers
from nadpipe.stages.plot_classes import plot_classes
from nadpipe.stages.select_pairs import select_pairs
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS, FEATURES
from nadpipe.store.kinds.segmentation import CONFUSION, DIFFERENCES, REGISTERS
from nadpipe.store.kinds.texts import TEXT
from nadpipe.store.kinds.units import SELECTION
from nadpipe.store.pairs import open_pair_directions
from nadpipe.store.readout import read_readout
from nadpipe.store.tables import read_parquet


def test_images_of_odd_sizes_are_segmented_at_their_own_size(run):
    shapes = [(64, 64), (131, 67), (70, 333), (20, 31)]
    pixels = [
        np.random.default_rng(number).integers(0, 256, (*shape, 3), dtype=np.uint8) for number, shape in enumerate(shapes)
    ]
    for number, shape in enumerate(shapes):
        Image.fromarray(np.full(shape, number % 3, np.uint8)).save(run.folder / f"m{number}.png")
    run.write_images(pixels, mask=[f"m{number}.png" for number in range(4)])
    contributions = run.decompose(views="sliding")
    classes = run.classes()
    run.select(contributions)
    confusion, labels = run.segment(contributions, k=(4, 9))
    scores = run.score(confusion)
    assert scores["method"].tolist() == ["nad", "nad", "nad_centred", "nad_centred", "neurons", "neurons", *METHODS[3:]]
    assert scores["k"].fillna(0).tolist() == [4, 9, 4, 9, 4, 9, 0, 0, 0]
    assert (scores["pixels"] == sum(height * width for height, width in shapes)).all()
    assert (scores["miou_low"] < scores["miou"]).all()
    assert (scores["miou"] < scores["miou_high"]).all()
    assert scores["rare_classes"].tolist() == scores["classes"].tolist()  # of four images
    differences = read_parquet(run.folder / "d.parquet", DIFFERENCES)
    assert len(differences) == 9 * 8 / 2
    two = differences[(differences["method"] == "nad") & (differences["k"] == 9) & (differences["other_method"] == "maskclip")]
    miou = scores.set_index(["method", "k"])["miou"].to_dict()
    assert two["difference"].item() == pytest.approx(miou["nad", 9] - scores.set_index("method")["miou"]["maskclip"], abs=1e-6)
    for number, shape in enumerate(shapes):
        assert Image.open(labels / "nad-k9" / f"{number:06d}.png").size == shape[::-1]
    images = run.folder / "images.parquet"
    (labels / ".snakemake_timestamp").touch()
    draw_overlays(images, classes, (labels,), run.folder / "o", count=2)
    assert [path.name for path in sorted((run.folder / "o").iterdir())] == ["000000.png", "000003.png"]
    draw_contact_sheets(images, classes, (confusion,), (labels,), run.folder / "sheets", count=2)
    assert {path.stem for path in (run.folder / "sheets").iterdir()} == {path.name for path in labels.glob("[a-z]*")}
    plot_classes(run.folder / "s.parquet", run.folder / "classes.png")
    assert 0.01 < ink(run.folder / "classes.png") < 0.9
    with pytest.raises(NadpipeError, match="data set other"):
        plot_classes(run.folder / "s.parquet", run.folder / "other.png", dataset="other")
    with pytest.raises(NadpipeError, match="label map"):
        draw_contact_sheets(images, classes, (confusion,), (run.folder / "o",), run.folder / "p", count=2)


def test_views_of_any_size_are_segmented_and_still_sum_to_their_embedding(run):
    Image.fromarray(np.zeros((70, 90), np.uint8)).save(run.folder / "m.png")
    run.write_images(noise(3), mask=["m.png"] * 3)
    contributions = run.decompose(views="sliding", name="own")
    larger = run.decompose(views="sliding", scale=2.4, crop=1.5)
    store = open_zarr(run.folder / "d-features-0.zarr", FEATURES)
    assert store["activation"].shape[1] == 9  # crops of 96 pixels on a grid of 3 × 3
    assert set(store["resized_height"][:]) == {154}
    assert float(open_zarr(larger[0], CONTRIBUTIONS)["residual"][:].max()) < 1e-5
    run.classes()
    run.select(contributions)
    confusion, _ = run.segment(contributions, sink=3)
    assert set(read_parquet(confusion, CONFUSION)["sink"]) == {8}  # south-east of 2 × 2, and of 3 × 3
    confusion, _ = run.segment(contributions, sink="last", sink_replacement="vectors")
    assert set(read_parquet(confusion, CONFUSION)["sink"]) == {8}
    with pytest.raises(NadpipeError, match=r"segmentation.crop: crops of 64 pixels .* short side of 32"):
        run.decompose(views="sliding", name="x", scale=0.5)
    with pytest.raises(NadpipeError, match=r"segmentation.block: .* no block 1"):
        run.decompose(views="sliding", name="x", shown_block=1)


def test_images_without_masks_get_the_same_label_maps_and_shares_but_no_scores(run):
    pixels, masks = noise(2), ["m0.png", "m1.png"]
    for name, rows in zip(masks, (10, 70), strict=True):
        values = np.full((70, 90), 255, np.uint8)
        values[:rows] = np.random.default_rng(rows).integers(0, 3, (rows, 90))
        Image.fromarray(values).save(run.folder / name)
    run.write_images(pixels, mask=masks)
    contributions = run.decompose(views="sliding")
    classes = run.classes()
    run.select(contributions)
    tables, label_maps, scores = {}, {}, None
    for name in ("masks", "no masks"):
        if name == "no masks":
            run.write_images(pixels)
        confusion, labels = run.segment(contributions, methods=("nad", "maskclip"))
        tables[name] = run.measure_shares(confusion)
        label_maps[name] = {path.relative_to(labels): path.read_bytes() for path in labels.rglob("*.png")}
        overlays = run.folder / f"overlays {name}"
        draw_overlays(run.folder / "images.parquet", classes, (labels,), overlays, count=2)
        if name == "masks":
            scores = run.score(confusion)
    assert label_maps["masks"] == label_maps["no masks"]
    assert scores["pixels"].tolist() == [80 * 90] * 2
    with pytest.raises(NadpipeError, match=r"datasets\.segmentation: no labelled pixels; check its masks"):
        run.score(confusion)
    summary, images = tables["no masks"]
    pd.testing.assert_frame_equal(images, tables["masks"][1])
    alike = ["dataset", "method", "k", "class", "share", "found", "images"]
    pd.testing.assert_frame_equal(summary[alike], tables["masks"][0][alike])
    assert summary[["mask_share", "error"]].isna().all(axis=None)
    for row in images.itertuples():
        variant = "maskclip" if pd.isna(row.k) else f"nad-k{row.k:.0f}"
        label_map = np.asarray(Image.open(labels / variant / f"{row.image_id:06d}.png"))
        assert row.pixels == (label_map == "abc".index(row[5])).sum()
        assert row.share == pytest.approx(row.pixels / label_map.size)
    assert images.groupby(["method", "image_id"])["share"].sum().to_numpy() == pytest.approx(1)
    assert len(summary) == 2 * 3
    mean = images.groupby(["method", "class"])["share"].sum() / 2
    for row in summary.itertuples():
        assert row.share == pytest.approx(mean.get((row.method, row[4]), 0), rel=1e-6)
    truth = [np.asarray(Image.open(run.folder / name)) for name in masks]
    expected = [np.mean([(mask == index).sum() / (mask != 255).sum() for mask in truth]) for index in range(3)]
    assert tables["masks"][0]["mask_share"].tolist() == pytest.approx(expected * 2)
    widths = [Image.open(run.folder / f"overlays {name}" / "000000.png").width for name in ("masks", "no masks")]
    assert widths[0] > widths[1]  # without masks, there is no picture of the truth


def test_texts_without_a_reference_are_not_centred(run):
    run.write_images(noise(3))
    contributions = run.decompose()
    texts = open_zarr(run.embed("classes", ("a", "b", "c")), TEXT).tensor("embedding")
    for reference, expected in [(run.folder / "classes.zarr", texts - texts.mean(0)), (None, texts)]:
        selection = open_zarr(run.select(contributions, reference=reference), SELECTION)
        assert selection.attributes["centred"] == (reference is not None)
        query = expected / expected.norm(dim=1, keepdim=True)
        torch.testing.assert_close(selection.tensor("query"), query)
        readout, model = read_readout(run.pool)
        pairs = open_pair_directions(run.folder / "pair.zarr", readout, model)
        cosine = torch.stack([pairs.direction(head) for head in range(readout.heads)]).flatten(0, 1) @ query.T
        torch.testing.assert_close(selection.tensor("cosine"), cosine.topk(9, dim=0).values.T)


def test_images_are_resized_by_the_model_s_filter_or_as_opencv_does(run):
    """Features of an image resized by cv2's rule equal those of the resized image, which no filter changes any more."""
    pixels = noise(1, 70, 95)
    left, right = crop_pixels(Image.fromarray(pixels[0]), [Box(0, 0, 64, 64, 87), Box(0, 23, 64, 64, 87)], OPENCV)
    resized = np.hstack([left[:, :23], right])
    activations = {}
    for name, images, resize in (("opencv", pixels, "opencv"), ("own", pixels, "model"), ("before", [resized], "model")):
        run.write_images(images)
        run.decompose(views="sliding", name=name, resize=resize)
        store = open_zarr(run.folder / f"{name}-features-0.zarr", FEATURES)
        activations[name] = store.read("activation")
        assert set(store.read("resized_width")) == {86 if name == "own" else 87}  # 86.9, rounded down or to the nearest
    np.testing.assert_array_equal(activations["opencv"], activations["before"])
    assert np.abs(activations["own"] - activations["before"]).max() > 0.01 * np.abs(activations["own"]).max()
    run.decompose(name="centre", resize="opencv")  # single crops keep the model's own transform
    run.decompose(name="plain")
    for name in ("centre", "plain"):
        activations[name] = open_zarr(run.folder / f"{name}-features-0.zarr", FEATURES).read("activation")
    np.testing.assert_array_equal(activations["centre"], activations["plain"])


def test_neurons_are_ranked_by_the_mean_decrease_or_the_mean_absolute_change(run):
    run.write_images(noise(5))
    samples = run.sample(run.decompose())
    tables = {}
    for rank_by in ("signed", "absolute"):
        path = run.folder / f"{rank_by}.parquet"
        measure_registers(samples, run.pool, path, rank_by=rank_by)
        table = read_parquet(path, REGISTERS)
        tables[rank_by] = table[table["kind"] == "neuron"].set_index("rank").sort_index()
        spatial = table[table["kind"] == "token"]
        assert spatial["sink_share"].between(0, 1).all()
        assert spatial.loc[spatial["sink"].astype(bool), "sink_share"].gt(0.5).all()
    assert tables["signed"]["attention_drop"].is_monotonic_decreasing
    assert tables["absolute"]["attention_change"].is_monotonic_decreasing
    change, drop = (tables["signed"][name] for name in ("attention_change", "attention_drop"))
    assert (change >= drop.abs() - 1e-7).all()
    assert (change > drop.abs() + 1e-6).any()  # differences of both signs over the images
    assert tables["signed"]["index"].tolist() != tables["absolute"]["index"].tolist()


def test_pixels_without_a_probable_name_are_background(run):
    Image.fromarray(np.zeros((70, 90), np.uint8)).save(run.folder / "m.png")
    run.write_images(noise(3), mask=["m.png"] * 3)
    contributions = run.decompose(views="sliding")
    path = run.classes(("background, sky", "a", "b"))
    assert open_zarr(run.folder / "classes.zarr", TEXT).texts() == ["background", "sky", "a", "b"]
    embed_texts(output=run.folder / "classes.zarr", classes=path, background_names=False, device="cpu", **run.model)
    texts = run.folder / "classes.zarr"
    select_pairs(texts, run.fit("pair", contributions), run.pool, run.folder / "s.zarr", k=9, reference=texts)
    with pytest.raises(NadpipeError, match=r"s\.zarr: .*other texts than"):
        run.segment(contributions)
    confusion, _ = run.segment(contributions, background_names=False)
    assert set(read_parquet(confusion, CONFUSION)["predicted_class"]) <= {1, 2}
    confusion, _ = run.segment(contributions, background_names=False, background_threshold=0.9, temperature=1e-4)
    assert set(read_parquet(confusion, CONFUSION)["predicted_class"]) == {0}
    assert (run.score(confusion)["pixel_accuracy"] == 1).all()
    run.classes(("a", "b", "c"))
    run.select(contributions)
    with pytest.raises(NadpipeError, match=r"datasets\.segmentation\.background_threshold: .*background"):
        run.segment(contributions, background_threshold=0.5)


def test_any_number_of_shards_segments_and_scores_alike(run):
    """Features of single images are byte-identical in any shard; sums over images agree within rounding."""
    pixels = noise(8)
    masks = [f"m{number}.png" for number in range(8)]
    for number, name in enumerate(masks):
        values = np.random.default_rng(number).integers(0, 3, (70, 90), dtype=np.uint8)
        Image.fromarray(values).save(run.folder / name)
    run.write_images(pixels, mask=masks)
    run.classes()
    results = {}
    for shards in (1, 3, 7):
        contributions = run.decompose(shards, views="sliding", batch_size=1)
        features = [open_zarr(run.folder / f"d-features-{shard}.zarr", FEATURES) for shard in range(shards)]
        joined = {name: np.concatenate([store[name][:] for store in features]) for name in features[0].group.array_keys()}
        coefficients = np.concatenate([open_zarr(path, CONTRIBUTIONS)["coefficient"][:] for path in contributions])
        run.select(contributions)
        segmented = [run.segment(contributions, shard) for shard in range(shards)]
        labels = {path.relative_to(folder): path.read_bytes() for _, folder in segmented for path in folder.rglob("*.png")}
        results[shards] = joined, coefficients, labels, run.score(*(confusion for confusion, _ in segmented))
    for shards in (3, 7):
        for name in ("activation", "embedding", "image_id", "crop_top", "crop_left"):
            np.testing.assert_array_equal(results[shards][0][name], results[1][0][name])
        np.testing.assert_allclose(results[shards][1], results[1][1], rtol=1e-4, atol=1e-5)
        assert results[shards][2].keys() == results[1][2].keys()
        same = [results[shards][2][name] == content for name, content in results[1][2].items()]
        assert np.mean(same) > 0.95
        pd.testing.assert_frame_equal(results[shards][3], results[1][3], rtol=1e-3)


def test_invalid_selections_are_reported(run):
    run.write_images(noise(3))
    contributions = run.decompose()
    with pytest.raises(NadpipeError, match=r"k: 513 .*512 pairs \(4 heads × 128 neurons\)"):
        run.select(contributions, k=513)
    with pytest.raises(NadpipeError, match="equals the mean"):
        run.select(contributions, texts=("a",))
    run.select(contributions, texts=("a",), reference=run.embed("words", ("a", "b", "c d")))


def test_invalid_segmentations_are_reported(run, monkeypatch):
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
    with pytest.raises(NadpipeError, match=r"method x; .*nad, nad_centred"):
        run.segment(contributions, methods=("x",))
    with pytest.raises(NadpipeError, match=r"segmentation.sink: 4 .*spatial token; .*0 to 3"):
        run.segment(contributions, sink=4)
    run.decompose()
    with pytest.raises(NadpipeError, match=r"d-features-0\.zarr: .*do not cover the image"):
        run.segment(contributions)
    assert not (run.folder / "labels-0").exists()
    run.write_images(noise(1), mask=["m.png"])
    contributions = run.decompose(views="sliding")
    confusion, _ = run.segment(contributions, sink=2)
    with pytest.raises(NadpipeError, match=r"datasets\.segmentation: no labelled pixels"):
        run.score(confusion)
    monkeypatch.setitem(segmentation.LOGITS, "nad", lambda tokens, pairs: segmentation.heads(tokens, pairs) / 0)
    with pytest.raises(NadpipeError, match=r"d-features-0\.zarr: nad-k9 .*logits for image 0"):
        run.segment(contributions, sink=2)
