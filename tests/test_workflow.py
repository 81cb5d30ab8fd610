"""The real DAG on a small demo: it runs, a second run does nothing, and a change reruns exactly what it touches."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml
from PIL import Image

from nadpipe.artifacts import CSV, PARQUET
from nadpipe.config import Dataset
from nadpipe.demo.world import CLASSES

ROOT = Path(__file__).parents[1]


def test_every_target_is_made_from_files_on_disk(checkout):
    results = checkout.folder / "results"
    for name, columns in CSV.items():
        table = pd.read_csv(results / f"{name}.csv")
        assert list(table.columns) == list(columns)
        assert len(table)
    for name in ("sparsity", "reconstruction", "sparse_text", "naming", "faithfulness", "polysemanticity", "registers"):
        assert Image.open(results / f"{name}.png").width > 300
    assert len(list((results / "retrieval").glob("neuron-*.png"))) == 12
    for name in ("pairs", "neurons", "heads"):
        assert list(pd.read_parquet(results / f"{name}.parquet").columns)[: len(PARQUET[name])] == list(PARQUET[name])
    heads, neurons = 12, 768
    pairs = pd.read_parquet(results / "pairs.parquet")
    assert len(pairs) == heads * neurons
    assert sorted(pairs["contribution_rank"]) == list(range(1, heads * neurons + 1))
    assert (pairs["explained"].dropna() == 1).all()
    explained = pd.read_parquet(results / "neurons.parquet")[["explained_1", "explained_2", "explained_3"]].dropna()
    assert (explained.sum(axis=1) <= 1 + 1e-5).all()
    assert explained["explained_1"].between(0.05, 1 + 1e-6).all()
    duckdb.sql(f"select nearest_text, count(*) from '{results / 'pairs.parquet'}' group by all").fetchall()


def test_pairs_sum_to_the_embedding_in_every_shard(checkout):
    stores = list((checkout.folder / "results" / "artifacts").glob("*/contributions/*.zarr"))
    assert len(stores) == 3
    for path in stores:
        store = xr.open_zarr(path)
        assert float(store["residual"].max()) < 1e-5
        model_own = xr.open_zarr(path.parents[1] / "features" / path.name)["embedding"]
        np.testing.assert_allclose(store["embedding"], model_own, atol=1e-4)


def test_the_demos_truth_is_found(checkout):
    results = checkout.folder / "results"
    scores = pd.read_csv(results / "segmentation.csv").set_index("method")
    assert scores.loc["maskclip", "miou"] > 0.5
    assert scores.loc["nad", "miou"] > 0.5
    shift = pd.read_csv(results / "shift.csv")
    assert shift.groupby("concept")["auroc"].max().min() > 0.9
    last = shift[(shift["group"] == 2025) & (shift["score"] == "projection")].set_index("concept")
    drifting, steady = last.loc[["fish", "snail", "sky"]], last.loc[["star", "blue", "striped"]]
    assert np.sign(drifting["effect"]).tolist() == [1, -1, -1]
    assert drifting["effect"].abs().min() > steady["effect"].abs().max()
    assert drifting["q"].min() < 0.05
    assert steady["q"].min() > 0.5
    found = pd.read_parquet(results / "shift" / "discovered.parquet").query("group == '2025'")
    words = found.head(50)["active_text"].astype(str).str.replace(" on ", " ").str.split().explode()
    assert words.isin(["fish", "snail", "sky", "sand"]).mean() > 0.6  # four of 25 words drift
    naming = pd.read_csv(results / "naming.csv").set_index(["rule", "share"])["agreement"]
    assert naming["correlated", 1.0] > naming["nearest", 1.0] + 0.1
    own = pd.read_csv(results / "faithfulness.csv").query("ablated == measured")["change"]
    others = pd.read_csv(results / "faithfulness.csv").query("ablated != measured")["change"]
    assert own.max() < -0.5 < others.min()


def test_label_maps_reload_to_what_was_scored(checkout):
    results = checkout.folder / "results"
    images = pd.read_parquet(results / "artifacts" / "segmentation" / "images.parquet")
    right = total = 0
    for row in images.itertuples():
        mask = np.asarray(Image.open(checkout.folder / row.mask_path))
        label = np.asarray(Image.open(results / f"segmentation/segmentation/labels/0/maskclip/{row.image_id:06d}.png"))
        assert label.shape == mask.shape == (row.height, row.width)
        right, total = right + (label == mask).sum(), total + mask.size
    scores = pd.read_csv(results / "segmentation.csv").set_index("method")
    assert scores.loc["maskclip", "pixel_accuracy"] == pytest.approx(right / total, abs=1e-5)
    assert len(list((results / "segmentation/segmentation/overlays").glob("*.png"))) == 3
    assert len(list((results / "segmentation/segmentation/sheets").glob("*.png"))) == len(scores)
    assert Image.open(results / "segmentation/segmentation/per_class.png").width > 300
    per_class = pd.read_parquet(results / "segmentation" / "per_class.parquet")
    assert set(per_class["class"]) == set(CLASSES)
    assert per_class.groupby("method", observed=True)["pixels"].sum().unique().tolist() == [total]


def test_logs_have_plain_lines_with_a_rate(checkout):
    log = (checkout.folder / "logs/extract_features/discovery/0.log").read_text()
    assert re.search(r"encoding: 30/30 image, +[\d.]+image/s", log)
    assert "\r" not in log


def test_a_second_run_does_nothing(checkout):
    assert checkout.plan() == {}
    assert "Nothing to be done" in checkout.run("all").stderr


SCORED = {"score_segmentation": 1, "plot_classes": 1}
SEGMENTED = {"segment_images": 1, **SCORED, "draw_overlays": 1, "draw_contact_sheets": 1}
CONCEPTS = {"score_shift": 1, "measure_faithfulness": 1}
RANKED = {"measure_polysemanticity": 1, "draw_retrieval": 1}
TABULATED = {"tabulate_units": 3, "rank_shifts": 1, **RANKED}
ASSIGNED = {"assign_texts": 1, "assign_texts_to_subspaces": 2, **TABULATED, "measure_sparse_text": 1, "measure_naming": 1}
NAMED = {"correlate_texts": 1, **ASSIGNED}
REBUILT = {"measure_sparsity": 1, "measure_reconstruction": 1, "measure_sparse_text": 1}
ANALYSED = {**REBUILT, "measure_naming": 1, "measure_faithfulness": 1}
FITTED = {"fit_directions": 3, **NAMED, **ANALYSED, "select_pairs": 2, **SEGMENTED, "score_shift": 1}
ACCUMULATED = {"accumulate_pairs": 2, **FITTED}
DECOMPOSED = {"compute_contributions": 3, **ACCUMULATED}
MEASURED = {"measure_registers": 1, **SEGMENTED}
ENCODED = {"extract_features": 4, **DECOMPOSED, **MEASURED}
EMBEDDED = {"embed_texts": 4, **NAMED, **REBUILT, "select_pairs": 2, **SEGMENTED, **CONCEPTS}
LISTED = {"index_images": 3, "embed_texts": 1, **ENCODED}
MODEL = {"export_attnpool": 1, **ENCODED, **EMBEDDED}
CLASSED = {"index_classes": 1, "embed_texts": 1, "select_pairs": 1, **SEGMENTED}
OF_SEGMENTATION = {"index_images": 1, "extract_features": 1, **SEGMENTED}
OF_MONITORING = {"compute_contributions": 1, "score_shift": 1, "rank_shifts": 1, **ANALYSED}
OF_MONITORING |= {"index_images": 1, "embed_texts": 1, "extract_features": 1}

CHANGES = {
    "segmentation.datasets": (
        ["segmentation", "more"],
        {**OF_SEGMENTATION, **CLASSED, "plot_classes": 2},
    ),
    "segmentation.k": ([50], {"select_pairs": 1, **SEGMENTED}),
    "segmentation.select_by": ("direction", {"select_pairs": 1, **SEGMENTED}),
    "segmentation.temperature": (10, SEGMENTED),
    "segmentation.sink": (5, SEGMENTED),
    "segmentation.methods": (["nad", "maskclip"], SEGMENTED),
    "segmentation.stride": (0.7, {"extract_features": 1, **SEGMENTED}),
    "segmentation.scale": (1.5, {"extract_features": 1, **SEGMENTED}),
    "segmentation.crop": (0.5, {"extract_features": 1, **SEGMENTED}),
    "segmentation.block": (0, {"extract_features": 1, **SEGMENTED}),
    "segmentation.overlays": (2, {"draw_overlays": 1}),
    "segmentation.extremes": (2, {"draw_contact_sheets": 1}),
    "segmentation.resamples": (300, SCORED),
    "segmentation.confidence": (0.9, SCORED),
    "registers.images": (5, MEASURED),
    "registers.sink_factor": (4, MEASURED),
    "datasets.segmentation.classes": ([*reversed(CLASSES)], CLASSED),
    "datasets.segmentation.reduce_zero_label": (True, CLASSED),
    "datasets.segmentation.ignore": (254, CLASSED),
    "datasets.segmentation.background_names": (False, {"embed_texts": 1, "select_pairs": 1, **SEGMENTED}),
    "datasets.segmentation.background_threshold": (0.2, SEGMENTED),
    "datasets.segmentation.area_threshold": (0.01, SEGMENTED),
    "datasets.segmentation.split": ("val", {**OF_SEGMENTATION, "index_classes": 1, "embed_texts": 1, "select_pairs": 1}),
    "directions.top_images": (10, ACCUMULATED),
    "directions.components": (
        2,
        {"fit_directions": 2, "assign_texts_to_subspaces": 2, "tabulate_units": 2, "measure_reconstruction": 1, **RANKED},
    ),
    "assignments.atoms": (3, ASSIGNED),
    "assignments.nearest": (2, NAMED),
    "assignments.sparse_share": (0.5, ASSIGNED),
    "assignments.device": ("auto", {}),
    "dense.datasets": (["discovery", "monitoring"], {"export_dense": 3}),
    "dense.dtype": ("float16", {}),
    "contributions.dtype": ("float16", DECOMPOSED),
    "features.precision": ("bfloat16", ENCODED),
    "features.dtype": ("float16", ENCODED),
    "text.dictionary": ("README.md", {"embed_texts": 1, **NAMED, "select_pairs": 1, **CONCEPTS}),
    "text.templates": (["{}"], EMBEDDED),
    "shift.concepts": (["fish", "red"], {"embed_texts": 1, "select_pairs": 1, **CONCEPTS}),
    "shift.k": (20, {"select_pairs": 1, **CONCEPTS}),
    "shift.select_by": ("direction", {"select_pairs": 1, **CONCEPTS}),
    "shift.test": ("ks", {"score_shift": 1}),
    "shift.small_group": (5, {"score_shift": 1, "rank_shifts": 1}),
    "shift.examples": (2, {"rank_shifts": 1}),
    "analyses.dataset": ("discovery", {"embed_texts": 1, **ANALYSED}),
    "analyses.images": (50, REBUILT),
    "analyses.confidence": (0.9, REBUILT),
    "analyses.shares": ([0.5], {"measure_sparsity": 1}),
    "analyses.draws": (2, {"measure_sparsity": 1, "measure_faithfulness": 1}),
    "analyses.atoms": ([3], {"measure_sparse_text": 1}),
    "analyses.top": (5, RANKED),
    "analyses.sheets": (3, {"draw_retrieval": 1}),
    "shift.reference": ("2020", {"score_shift": 1, "rank_shifts": 1}),
    "shift.resamples": (300, {"score_shift": 1}),
    "shift.confidence": (0.9, {"score_shift": 1}),
    "contributions.tolerance": (1e-4, DECOMPOSED),
    "contributions.batch_size": (7, {}),
    "features.batch_size": (7, {}),
    "features.workers": (1, {}),
    "text.batch_size": (7, {}),
    "text.cache": (None, {}),
    "device": ("cpu", {}),
    "demo.segmentation_images": (4, {"make_demo_data": 1, **OF_SEGMENTATION}),
    "demo.discovery_images": (
        50,
        {"make_demo_data": 1, "index_images": 1, "extract_features": 2, "compute_contributions": 2, **ACCUMULATED, **MEASURED},
    ),
    "demo.monitoring_images_per_year": (5, {"make_demo_data": 1, **OF_MONITORING}),
    "seed": (1, {"make_demo_data": 3, **LISTED}),  # and score_segmentation, score_shift: in LISTED
    "datasets.monitoring.group_column": ("background", OF_MONITORING),
    "datasets.monitoring.label_column": (None, OF_MONITORING),
    "datasets.monitoring.mask_column": ("mask_path", OF_MONITORING),
    "datasets.segmentation.path_column": ("mask_path", OF_SEGMENTATION),
    "datasets.segmentation.path": ("results/demo/monitoring.csv", {**OF_SEGMENTATION, **CLASSED}),
    "datasets.segmentation.layout": ("tree", {**OF_SEGMENTATION, **CLASSED}),
    "datasets.monitoring.shards": (
        2,
        {"extract_features": 2, "compute_contributions": 2, "score_shift": 1, "rank_shifts": 1, **ANALYSED},
    ),
    "datasets.monitoring.bad_images": ("skip", OF_MONITORING),
    "datasets.monitoring.labels": ("README.md", OF_MONITORING),
    "datasets.discovery.shards": (
        1,
        {"extract_features": 1, "compute_contributions": 1, "accumulate_pairs": 1, **FITTED, **MEASURED},
    ),
    "model.architecture": ("RN50", MODEL),
    "model.pretrained": ("openai", MODEL),
}


def keys(section, prefix=""):
    """Full paths of all keys of the config."""
    for name, value in section.items():
        yield from keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]


def test_every_key_of_the_config_is_in_the_table_of_changes(checkout):
    of_datasets = {key for key in keys(checkout.config) if key.startswith("datasets.")}
    assert set(keys(checkout.config)) - of_datasets == {key for key in CHANGES if not key.startswith("datasets.")}
    assert set(Dataset.model_fields) == {key.split(".")[2] for key in CHANGES if key.startswith("datasets.")}


@pytest.fixture(scope="module")
def changed_plans(checkout, tmp_path_factory):
    """What would rerun after each change, laid over the config as users do; dry runs only read, so several go side by side."""
    folder = tmp_path_factory.mktemp("changes")

    def plan(key):
        over = CHANGES[key][0]
        for name in reversed(key.split(".")):
            over = {name: over}
        path = folder / f"{key}.yaml"
        path.write_text(yaml.safe_dump(over))
        return checkout.plan("--configfile", str(path))

    pool = ThreadPoolExecutor(os.cpu_count())
    yield {key: pool.submit(plan, key) for key in CHANGES}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("key", CHANGES)
def test_a_changed_setting_reruns_exactly_what_reads_it(checkout, changed_plans, key):
    value, expected = CHANGES[key]
    *sections, last = key.split(".")
    section = checkout.config
    for name in sections:
        section = section[name]
    assert section.get(last, ...) != value
    assert changed_plans[key].result() == expected


EDITS = {
    "stages/make_demo_data.py": {"make_demo_data": 3, **LISTED},
    "stages/make_demo_model.py": {"make_demo_model": 1, **MODEL},
    "stages/index_images.py": LISTED,
    "stages/index_classes.py": CLASSED,
    "stages/measure_registers.py": MEASURED,
    "stages/export_attnpool.py": {"export_attnpool": 1, **DECOMPOSED, **MEASURED},
    "stages/extract_features.py": ENCODED,
    "stages/compute_contributions.py": DECOMPOSED,
    "stages/accumulate_pairs.py": ACCUMULATED,
    "stages/export_dense.py": {},
    "stages/fit_directions.py": FITTED,
    "stages/embed_texts.py": EMBEDDED,
    "stages/assign_texts.py": ASSIGNED,
    "stages/correlate_texts.py": {"correlate_texts": 1, **TABULATED, "tabulate_units": 1, "measure_naming": 1},
    "stages/tabulate_units.py": TABULATED,
    "stages/select_pairs.py": {"select_pairs": 2, **SEGMENTED, **CONCEPTS},
    "stages/measure_sparsity.py": {"measure_sparsity": 1},
    "stages/measure_reconstruction.py": {"measure_reconstruction": 1},
    "stages/measure_sparse_text.py": {"measure_sparse_text": 1},
    "stages/measure_polysemanticity.py": RANKED,
    "stages/draw_retrieval.py": {"draw_retrieval": 1},
    "stages/measure_naming.py": {"measure_naming": 1},
    "stages/measure_faithfulness.py": {"measure_faithfulness": 1},
    "stages/score_batch.py": {},
    "stages/segment_images.py": SEGMENTED,
    "stages/score_segmentation.py": SCORED,
    "stages/draw_overlays.py": {"draw_overlays": 1},
    "stages/draw_contact_sheets.py": {"draw_contact_sheets": 1},
    "stages/plot_classes.py": {"plot_classes": 1},
    "stages/score_shift.py": {"score_shift": 1},
    "stages/rank_shifts.py": {"rank_shifts": 1},
    "stages/train_demo.py": {},
    "segmentation.py": SEGMENTED,
    "metrics.py": SEGMENTED,
    "registers.py": MEASURED,
    "class_tables.py": {"index_classes": 1, **EMBEDDED},
    "layouts.py": {**CLASSED, **LISTED, "embed_texts": 2},  # of classes, and of labels
    "plots.py": {**MEASURED, **REBUILT, **RANKED, "measure_naming": 1, "measure_faithfulness": 1},
    "ablation.py": {**REBUILT, "measure_faithfulness": 1},
    "labelled.py": REBUILT,
    "labels.py": EMBEDDED,
    "shift.py": {"score_shift": 1, "rank_shifts": 1},
    "directions.py": {**DECOMPOSED, **MEASURED},
    "models.py": MODEL,
    "cli.py": {},
}


def test_every_stage_is_in_the_table_of_edits():
    stages = {f"stages/{path.name}" for path in (ROOT / "nadpipe" / "stages").glob("[a-z]*.py")}
    assert stages == {name for name in EDITS if name.startswith("stages/")}


@pytest.mark.parametrize("module", EDITS)
def test_an_edited_module_reruns_exactly_the_stages_that_import_it(checkout, module):
    path = checkout.folder / "nadpipe" / module
    source = path.read_text()
    path.write_text(source + "\n_EDITED = True\n")
    try:
        assert checkout.plan() == EDITS[module]
    finally:
        path.write_text(source)


def test_an_edited_comment_reruns_nothing(checkout):
    path = checkout.folder / "nadpipe" / "stages" / "fit_directions.py"
    source = path.read_text()
    path.write_text("# a remark\n" + source)
    try:
        assert checkout.plan() == {}
    finally:
        path.write_text(source)


def test_a_wrong_config_stops_before_the_first_job(checkout):
    done = checkout.run("all", "--config", "segmentation={k: -3, kk: 1}", check=False)
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert "config: segmentation.k.0: input should be greater than or equal to 1, not '-3'\n" in text
    assert "config: segmentation.kk: unknown key; allowed here: datasets, methods, k" in text
    assert "Job stats" not in text
    assert "Traceback" not in text


def test_a_run_whose_pairs_do_not_sum_to_the_embedding_fails_and_says_by_how_much(checkout):
    done = checkout.run(
        "results/artifacts/monitoring/contributions/0.zarr", "--config", "contributions={tolerance: 1e-12}", check=False
    )
    assert done.returncode != 0
    log = (checkout.folder / "logs/compute_contributions/monitoring/0.log").read_text()
    assert re.search(
        r"pairs sum to the embedding of view \d+ only within \d\.\de-\d\d of its norm, contributions.tolerance", log
    )
    assert not (checkout.folder / "results/artifacts/monitoring/contributions/0.zarr").exists()
    checkout.run("all")
    assert checkout.plan() == {}


def test_a_changed_temperature_moves_no_label_and_touches_nothing_else(checkout):
    def files():
        found = (checkout.folder / "results").rglob("*")
        return {path: path.read_bytes() for path in found if path.is_file() and "benchmarks" not in path.parts}

    before, scores = files(), pd.read_csv(checkout.folder / "results" / "segmentation.csv")
    done = checkout.run("all", "--config", "segmentation={temperature: 2}")
    assert len(re.findall(r"^(?:local)?rule (?!all)\w+:$", done.stderr, re.MULTILINE)) == len(SEGMENTED)
    after, colder = files(), pd.read_csv(checkout.folder / "results" / "segmentation.csv")
    assert {str(path.relative_to(checkout.folder)) for path in after if after[path] != before[path]} == {
        "results/segmentation.csv",
        "results/artifacts/segmentation/confusion/0.parquet",
    }
    pd.testing.assert_frame_equal(colder, scores.assign(temperature=2))
    checkout.run("all")
    assert files() == before


def test_a_new_batch_is_scored_without_scoring_the_reference_again(checkout):
    done = checkout.run("results/shift/batches/more.csv")
    ran = set(re.findall(r"^(?:local)?rule (\w+):", done.stderr, re.MULTILINE))
    assert ran == {"index_images", "extract_features", "compute_contributions", "score_batch"}
    batch = pd.read_csv(checkout.folder / "results" / "shift" / "batches" / "more.csv")
    assert list(batch.columns) == list(CSV["shift"])
    assert batch["group"].unique().tolist() == ["more (batch)"]
    assert (batch["reference"] == 2018).all()
    assert batch["small"].all()  # eight images
