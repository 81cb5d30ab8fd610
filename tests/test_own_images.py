"""Own images with nothing else: no masks, labels, groups or concepts. `all` makes what can be made and says what is missing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from nadpipe.analyses import FINAL, final_tables
from nadpipe.config import check
from nadpipe.errors import BAD_INPUT
from nadpipe.needs import missing_needs
from nadpipe.stages.make_report import make_report


@pytest.fixture
def own(finished, tmp_path):
    """Return a folder with a few photographs in subfolders, and a config that names them and the demo's model."""
    for number, folder in enumerate(("2023", "2024", "2024", "2024")):
        (tmp_path / "photos" / folder).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / folder / f"{number}.png")
    model = {key: str(finished.folder / path) for key, path in finished.config["model"].items() if path}
    config = {"model": model, "datasets": {"discovery": {"layout": "tree", "path": "photos"}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_all_plans_what_a_folder_of_images_allows(finished, own):
    planned = finished.run("-n", "all", "--directory", str(own)).stdout
    made = {record.stage for path, record in FINAL.items() if not record.needs}
    left_out = {record.stage for path, record in FINAL.items()} - made
    assert {stage for stage in made if f"rule {stage}:" not in planned} == set()
    assert {stage for stage in left_out if f"rule {stage}:" in planned} == set()
    assert "results/report.html" in planned


def test_all_plans_label_maps_and_shares_of_images_without_masks(finished, own):
    config = yaml.safe_load((own / "config.yaml").read_text())
    config["datasets"]["street"] = {"layout": "tree", "path": "photos/2024", "classes": ["road, way", "sky"]}
    (own / "config.yaml").write_text(yaml.safe_dump(config | {"segmentation": {"datasets": ["street"]}}))
    planned = finished.run("-n", "all", "--directory", str(own)).stdout
    made = {"segment_images", "measure_shares", "draw_overlays"}
    assert {rule for rule in made if f"rule {rule}:" not in planned} == set()
    scored = {"score_segmentation", "draw_contact_sheets", "plot_classes"}
    assert {rule for rule in scored if f"rule {rule}:" in planned} == set()
    refused = finished.run("-n", "results/segmentation.csv", "--directory", str(own), check=False)
    assert refused.returncode == BAD_INPUT
    reason = "datasets.street.layout: tree has no masks; use a layout that has them"
    assert f"results/segmentation.csv: cannot be made. {reason}" in refused.stderr


def test_the_report_shows_shares_of_images_without_masks_and_which_key_gives_scores(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished.folder)
    means = tuple(Path("results/artifacts/discovery/head_means").glob("*.zarr"))
    reason = "datasets.segmentation.layout: tree has no masks; use a layout that has them"
    options = {"segmented": ("segmentation",), "unmasked": json.dumps({"segmentation": reason})}
    make_report(Path("results"), means, tmp_path / "report.html", **options)
    page = (tmp_path / "report.html").read_text()
    assert f"No scores. They need masks. {reason}." in page
    assert "mIoU of each method" not in page
    shares = pd.read_csv("results/shares.csv")
    bricks = shares[(shares["method"] == "nad") & (shares["class"] == "bricks")]["share"].item()
    assert f'<th scope="row">bricks</th><td class="n">{100 * bricks:.1f}%</td>' in page
    assert page.count("image, and the label map of each method") == 2 * 3  # alternative text and caption of three overlays


def test_a_result_that_the_config_does_not_allow_is_refused_with_the_key(finished, own):
    refused = finished.run("-n", "results/naming.csv", "--directory", str(own), check=False)
    assert refused.returncode == BAD_INPUT
    assert "results/naming.csv: cannot be made. analyses.dataset: not set" in refused.stderr


def test_the_report_says_what_is_missing_and_which_key_gives_it(finished, tmp_path, monkeypatch):
    """The report is made although the tables that need more are not there."""
    results = tmp_path / "results"
    shutil.copytree(finished.folder / "results", results, ignore=shutil.ignore_patterns("features", "text", "explorer"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    model = {"architecture": "RN50", "pretrained": "openai"}
    own_config = {"model": model, "datasets": {"discovery": {"layout": "tree", "path": "photos"}}}
    missing = missing_needs(check(own_config))
    for path in FINAL.keys() - set(final_tables(missing)):
        (tmp_path / path).unlink()
    means = tuple((results / "artifacts/discovery/head_means").glob("*.zarr"))
    make_report(results, means, tmp_path / "report.html", missing=json.dumps(missing))
    page = (tmp_path / "report.html").read_text()
    for need in ("labels", "segmentation", "groups"):
        assert f"Not made. {missing[need]}." in page


def test_a_changed_file_anywhere_in_the_folder_is_noticed(finished, own):
    target = "results/artifacts/discovery/images.parquet"

    def reruns():
        return "rule index_images:" in finished.run("-n", target, "--directory", str(own)).stdout

    shutil.copy(own / "photos" / "2023" / "0.png", own / "photos" / "2023" / "more.png")  # at least 4 remain
    finished.run(target, "--directory", str(own))
    assert not reruns()
    new = own / "photos" / "2024" / "new.png"
    shutil.copy(own / "photos" / "2023" / "0.png", new)
    assert reruns()
    new.unlink()
    assert not reruns()
    Image.fromarray(np.zeros((80, 90, 3), np.uint8)).save(own / "photos" / "2024" / "1.png")
    assert reruns()
    (own / "photos" / "2024" / "1.png").unlink()
    assert reruns()


def test_a_missing_path_is_an_error_although_the_results_exist(finished, own):
    target = "results/artifacts/discovery/images.parquet"
    finished.run(target, "--directory", str(own))
    shutil.rmtree(own / "photos")
    refused = finished.run(target, "--directory", str(own), check=False)
    assert refused.returncode == BAD_INPUT
    assert "datasets.discovery.path: 'photos' does not exist; " in refused.stderr
