"""The real DAG on a small demo: it runs, its results are right, and a second run does nothing."""

import hashlib
import json
import re
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml
from changes import SEGMENTED, completed
from checkout import Checkout
from conftest import ink
from PIL import Image

from nadpipe.analyses import FINAL, PLOTTED, captions
from nadpipe.demo.world import CLASSES
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds import all_kinds
from nadpipe.store.kinds.model import READOUT
from nadpipe.store.kinds.shift import SHIFT
from nadpipe.store.schema import CsvKind

ROOT = Path(__file__).parents[1]
READOUT_STORE = "results/artifacts/model/readout.zarr"


def test_every_target_is_made_from_files_on_disk(checkout):
    results = checkout.folder / "results"
    for kind in (kind for kind in all_kinds() if kind.path in FINAL):
        read = pd.read_csv if isinstance(kind, CsvKind) else pd.read_parquet
        table = read(checkout.folder / kind.path)
        columns = [column for column in table.columns if not column.startswith("explained_")]
        assert columns == list(kind.columns)
        assert len(table)
    for name in PLOTTED:
        assert 0.01 < ink(results / f"{name}.png") < 0.9
    assert len(list((results / "retrieval").glob("neuron-*.png"))) == 3
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
    assert steady["q"].min() > 0.05
    discovered = pd.read_parquet(results / "shift" / "discovered.parquet").query("group == '2025'")
    words = discovered.head(50)["active_text"].astype(str).str.replace(" on ", " ").str.split().explode()
    assert words.isin(["fish", "snail", "sky", "sand"]).mean() > 0.6  # four of 25 words drift
    naming = pd.read_csv(results / "naming.csv").set_index(["units", "rule", "share"])
    assert naming.loc[("pairs", "correlated", 1.0), "agreement"] > naming.loc[("pairs", "nearest", 1.0), "agreement"] + 0.1
    assert naming["difference"].xs(("correlated", 0.1), level=("rule", "share")).drop("pairs").min() > 0.1
    faithfulness = pd.read_csv(results / "faithfulness.csv")
    selected = faithfulness.query("rule == 'selected'")
    concept = ~selected["ablated"].str.startswith("random")
    same = selected[concept & (selected["ablated"] == selected["measured"])]
    assert same["change_highest"].max() < selected.drop(same.index)["change_highest"].min()  # of other concepts and controls
    assert set(same["own"]) == {"label"}
    assert same["auroc_ablated"].min() > 0.9  # many other pairs tell the concept apart, too


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
    assert 0.01 < ink(results / "segmentation/segmentation/per_class.png") < 0.9
    per_class = pd.read_parquet(results / "segmentation" / "per_class.parquet")
    assert set(per_class["class"]) == set(CLASSES)
    assert per_class.groupby("method", observed=True)["pixels"].sum().unique().tolist() == [total]


def test_logs_have_plain_lines_with_a_rate(checkout):
    log = (checkout.folder / "logs/extract_features/discovery/0.log").read_text()
    assert re.search(r"encoding: 30/30 image, +[\d.]+image/s", log)
    assert "\r" not in log


def test_the_run_records_the_provenance_of_its_tables(checkout):
    provenance = json.loads((checkout.folder / "results" / "provenance.json").read_text())
    assert provenance["tables"].keys() == FINAL.keys()
    for path, record in provenance["tables"].items():
        assert record["sha256"] == hashlib.sha256((checkout.folder / path).read_bytes()).hexdigest()
    assert {name: dataset["images"] for name, dataset in provenance["datasets"].items()} == {
        "discovery": 60,
        "monitoring": 240,
        "segmentation": 8,
    }
    assert provenance["model"]["heads"] == 12
    assert provenance["directions"] == {"images": 60, "top_images": 10}
    assert provenance["warnings"] == []
    assert provenance["config"]["segmentation"]["k"] == [1250]
    assert "batch_size" not in provenance["config"]["features"]
    assert provenance["code"].keys() == {path.stem for path in (ROOT / "nadpipe" / "stages").glob("[a-z]*.py")}


def test_the_exported_readout_may_be_shared_between_workflows(tmp_path_factory, tmp_path):
    for name in ("one", "two"):
        checkout = Checkout(tmp_path_factory.mktemp(name))
        shared = checkout.run("--cache", "export_readout", "--", READOUT_STORE, SNAKEMAKE_OUTPUT_CACHE=str(tmp_path))
        assert ("to cache" in shared.stderr) == (name == "one")
        assert open_zarr(checkout.folder / READOUT_STORE, READOUT)["value"].shape == (12, 64, 768)


def test_snakemakes_own_report_lists_the_results_with_captions(checkout, tmp_path):
    checkout.run("all", "--report", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    files = [path for path in (ROOT / "rules" / "captions").glob("*.rst") if path.stem != "final"]
    shown = [path.read_text().strip() for path in files]
    shown += [text for name, text in captions().items() if name in PLOTTED or f"results/{name}.csv" in FINAL]
    assert len(shown) == len(files) + 11
    assert [caption for caption in shown if caption.split(":")[0].split("'")[0] not in page] == []


def test_a_table_made_again_with_the_same_bytes_reruns_nothing(checkout):
    path = "results/artifacts/segmentation/images.parquet"
    before = (checkout.folder / path).stat().st_mtime_ns
    checkout.run("-f", path)
    assert (checkout.folder / path).stat().st_mtime_ns > before
    assert checkout.plan() == {}


def test_a_second_run_does_nothing(checkout):
    assert checkout.plan() == {}
    assert "Nothing to be done" in checkout.run("all").stderr


def test_a_wrong_config_stops_before_the_first_job(checkout):
    done = checkout.run("all", "--config", "segmentation={k: -3, kk: 1}", check=False)
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert re.search(r"^config: segmentation.k.0: '-3' .*integer from 1.*$", text, re.MULTILINE)
    assert "config: segmentation.kk: unknown key; use one of datasets, methods, k" in text
    assert "Job stats" not in text
    assert "Traceback" not in text


def test_a_run_ends_with_its_table_and_warns_if_the_results_are_of_another_study(finished, tmp_path):
    checkout = finished.copy(tmp_path / "checkout")
    (checkout.folder / "results/segmentation.csv").unlink()
    done = checkout.run("results/segmentation.csv")
    assert f"{checkout.folder}/results/segmentation.csv:\ndataset " in done.stderr
    assert "made with other values" not in done.stderr
    planned = checkout.run("-n", "all", "--config", "model={pretrained: openai, architecture: RN50}").stderr
    assert "results/: made with other values of model.architecture, model.pretrained; " in planned


def test_studies_in_folders_of_their_own_share_the_code_and_no_result(finished, tmp_path):
    study = tmp_path / "study"
    study.mkdir()
    photos = finished.folder / "results/demo/discovery/images"
    model = {key: str(finished.folder / path) for key, path in finished.config["model"].items() if path}
    config = {"model": model, "datasets": {"discovery": {"layout": "tree", "path": str(photos)}}}
    (study / "config.yaml").write_text(yaml.safe_dump(config))
    finished.run("results/artifacts/discovery/images.parquet", "--directory", str(study))
    assert sorted(path.name for path in (study / "results/artifacts").iterdir()) == ["discovery"]
    assert pd.read_parquet(study / "results/artifacts/discovery/images.parquet")["label"].isna().all()
    assert finished.plan() == {}


def test_a_run_whose_pairs_do_not_sum_to_the_embedding_fails_with_the_error(finished, tmp_path):
    checkout, store = finished.copy(tmp_path / "checkout"), "results/artifacts/monitoring/contributions/0.zarr"
    done = checkout.run(store, "--config", "contributions={tolerance: 1e-12}", check=False)
    assert done.returncode != 0
    log = (checkout.folder / "logs/compute_contributions/monitoring/0.log").read_text()
    assert re.search(r"view \d+ only within \d\.\de-\d\d of its norm, contributions.tolerance", log)
    assert done.stderr.strip().split("\n")[-2:] == [
        f"compute_contributions: {log.strip().splitlines()[-1]}",
        f"  log: {checkout.folder}/logs/compute_contributions/monitoring/0.log",
    ]
    assert not (checkout.folder / store).exists()
    checkout.run(store)
    assert "Nothing to be done" in checkout.run(store).stderr


def test_a_changed_temperature_moves_no_label_and_touches_nothing_else(checkout):
    def files():
        timed = {"benchmarks", "report.html"}  # they hold run times
        paths = (checkout.folder / "results").rglob("*")
        return {path: path.read_bytes() for path in paths if path.is_file() and not timed & {*path.parts}}

    before, scores = files(), pd.read_csv(checkout.folder / "results" / "segmentation.csv")
    done = checkout.run("all", "--config", "segmentation={temperature: 2}")
    assert len(re.findall(r"^(?:local)?rule (?!all)\w+:$", done.stderr, re.MULTILINE)) == len(completed(SEGMENTED))
    after, colder = files(), pd.read_csv(checkout.folder / "results" / "segmentation.csv")
    assert {str(path.relative_to(checkout.folder)) for path in after if after[path] != before[path]} == {
        "results/segmentation.csv.sha256",
        "results/segmentation.csv",
        "results/artifacts/segmentation/confusion/0.parquet",
        "results/provenance.json",
    }
    pd.testing.assert_frame_equal(colder, scores.assign(temperature=2))
    checkout.run("all")
    assert files() == before


def test_a_new_batch_is_scored_without_scoring_the_reference_again(checkout):
    done = checkout.run("results/shift/batches/more.csv")
    ran = set(re.findall(r"^(?:local)?rule (\w+):", done.stderr, re.MULTILINE))
    assert ran == {"index_images", "extract_features", "compute_contributions", "score_batch"}
    batch = pd.read_csv(checkout.folder / "results" / "shift" / "batches" / "more.csv")
    assert list(batch.columns) == list(SHIFT.columns)
    assert batch["group"].unique().tolist() == ["more (batch)"]
    assert (batch["reference"] == 2018).all()
    assert batch["small"].all()  # eight images
    (checkout.folder / "april.yaml").write_text("datasets: {april: {layout: tree, path: results/demo/segmentation/images}}\n")
    added = checkout.run("-n", "results/shift/batches/april.csv", "--configfile", "config.yaml", "april.yaml")
    planned = re.findall(r"^(?:local)?rule (\w+):", added.stdout + added.stderr, re.MULTILINE)
    assert sorted(planned) == ["compute_contributions", "extract_features", "index_images", "score_batch"]
    assert "made with other values" not in added.stderr
