"""Results and inputs on S3: a local server, the real DAG, and a connection that breaks in the middle of a folder."""

import re

import pandas as pd
import pytest
import s3
from checkout import Checkout

TARGET = "results/segmentation.csv"
FEATURES = "results/artifacts/discovery/features/0.zarr"
CONTRIBUTIONS = "results/artifacts/discovery/contributions/0.zarr"


@pytest.fixture(scope="module")
def server(finished):
    """Serve images with masks, a model and words, as users store them."""
    running = s3.Server()
    demo = finished.folder / "results" / "demo"
    for name in ("model.json", "model.safetensors", "dictionary.txt"):
        running.put(demo / name, f"own/{name}")
    for path in [demo / "segmentation.csv", *(demo / "segmentation").rglob("*.*")]:
        running.put(path, f"own/images/{path.relative_to(demo)}")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def stored(server, tmp_path_factory):
    """Return a function that runs a checkout with its results on the server."""
    checkout = Checkout(tmp_path_factory.mktemp("stored"))
    checkout.config["datasets"]["segmentation"]["path"] = f"s3://{s3.BUCKET}/own/images/segmentation.csv"
    checkout.config["model"] = {
        "architecture": f"s3://{s3.BUCKET}/own/model.json",
        "pretrained": f"s3://{s3.BUCKET}/own/model.safetensors",
    }
    checkout.config["text"]["dictionary"] = f"s3://{s3.BUCKET}/own/dictionary.txt"
    checkout.write_config(checkout.config)
    where = ("--default-storage-provider", "s3", "--default-storage-prefix", f"s3://{s3.BUCKET}/run")
    access = ("--storage-s3-endpoint-url", server.url, "--storage-s3-retries", "1")

    def run(*arguments, check=True):
        return checkout.run(*arguments, *where, *access, check=check, timeout=900, **s3.KEYS)

    return run


def test_an_incompletely_stored_folder_is_made_again(server, stored):
    server.lose_at("PUT", "features/0.zarr/", 3)
    failed = stored(FEATURES, check=False)
    server.mend()
    assert failed.returncode != 0
    assert f"Failed to store output in storage s3://{s3.BUCKET}/run/{FEATURES}" in failed.stderr
    assert len(server.keys(f"run/{FEATURES}/")) == 2
    assert server.keys(f"run/{FEATURES}.uploaded") == []
    plan = stored("-n", CONTRIBUTIONS)
    assert "extract_features" in plan.stdout + plan.stderr
    stored(CONTRIBUTIONS)
    assert len(server.keys(f"run/{FEATURES}/")) > 20
    assert len(server.keys(f"run/{FEATURES}.uploaded")) == 1


def test_an_incompletely_fetched_folder_is_fetched_again(server, stored):
    target = "results/artifacts/discovery/moments/0.zarr"
    server.lose_at("GET", f"{CONTRIBUTIONS}/", 3)
    failed = stored(target, check=False)
    server.mend()
    assert failed.returncode != 0
    assert f"Failed to retrieve storage object from s3://{s3.BUCKET}/run/{CONTRIBUTIONS}" in failed.stderr
    assert server.keys(f"run/{target}") == []
    stored(target)
    assert len(server.keys(f"run/{target}/")) > 5


def test_the_segmentation_table_on_s3_equals_that_of_a_local_run(server, stored, finished, tmp_path):
    stored(TARGET)
    server.bucket.download_file(f"run/{TARGET}", str(tmp_path / "stored.csv"))
    assert (tmp_path / "stored.csv").read_bytes() == (finished.folder / TARGET).read_bytes()
    assert "Nothing to be done" in stored(TARGET).stderr
    manifest = tmp_path / "images.parquet"
    server.bucket.download_file("run/results/artifacts/segmentation/images.parquet", str(manifest))
    images = pd.read_parquet(manifest)
    assert images["path"].str.startswith(f"s3://{s3.BUCKET}/own/images/segmentation/images/").all()
    assert images["mask_path"].str.startswith(f"s3://{s3.BUCKET}/own/images/segmentation/masks/").all()


def test_no_command_reads_or_writes_results_that_are_not_on_s3(stored):
    """Check every rule: a path that comes from neither an input nor an output would be a path on disk."""
    plan = stored("-n", "-p", "--forceall", "all")
    commands = re.findall(r"^ *nadpipe ([\w-]+) (.*?)2>", plan.stdout + plan.stderr, re.MULTILINE | re.DOTALL)
    assert len({name for name, _ in commands}) > 25
    # contents of a manifest and the provenance; a machine's cache
    named = r'"copy": \["results/demo", |"cache": "[^"]*"|"config": "(?:[^"\\]|\\.)*"'
    for name, command in commands:
        paths = re.findall(r"""[^\s"']*results/[^\s"']*""", re.sub(named, "", command, flags=re.DOTALL))
        assert [path for path in paths if not path.startswith(".snakemake/storage/s3/")] == [], name


def test_results_are_not_stored_among_the_images_of_a_data_set(tmp_path):
    checkout = Checkout(tmp_path)
    checkout.config["datasets"]["discovery"] = {"layout": "tree", "path": "s3://bucket/photos"}
    checkout.write_config(checkout.config)
    where = ("--default-storage-provider", "s3", "--default-storage-prefix", "s3://bucket/photos/run")
    done = checkout.run("-n", "all", *where, check=False)
    assert done.returncode != 0
    assert "s3://bucket/photos/run/ is in s3://bucket/photos, which is fetched as a whole" in done.stderr
    assert "Traceback" not in done.stderr
