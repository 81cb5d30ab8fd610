"""The demo on a real Slurm: the same tables, through the profile that the README names."""

import os
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import slurm
from conftest import Checkout

WANTED = os.environ.get("NADPIPE_SLURM") == "1"  # set by .ci/run, where not running it is a failure
TARGET = "results/segmentation.csv"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    reason = slurm.missing()
    if reason and not WANTED:
        pytest.skip(f"Slurm: {reason}")
    assert reason is None
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="Slurm: install the extra [slurm]")
    running = slurm.Slurm(tmp_path_factory.mktemp("slurm"))
    yield running
    running.stop()


WITHOUT_ACCOUNTING = ("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "9")


@pytest.fixture(scope="module")
def submitted(cluster, tmp_path_factory):
    """The small demo with everything but the local rules as jobs of Slurm, in bounded time; the first job that encodes images
    is killed. Returns the checkout and the killed job."""
    made = Checkout(tmp_path_factory.mktemp("submitted"))
    made.config["datasets"]["discovery"]["shards"] = 1  # a job of Slurm takes some ten seconds, whatever it does
    made.write_config(made.config)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(made.run, TARGET, "--profile", "profiles/slurm", *WITHOUT_ACCOUNTING, timeout=900)
        killed = cluster.kill("rule_extract_features", seconds=300)
        running.result()
    return made, killed


def test_slurm_makes_the_table_that_a_laptop_makes(submitted, checkout):
    made, _ = submitted
    there, here = (pd.read_csv(folder / TARGET) for folder in (made.folder, checkout.folder))
    pd.testing.assert_frame_equal(there, here, rtol=1e-5)
    assert "Nothing to be done" in made.run(TARGET).stderr


def test_every_job_but_the_killed_one_ended_well(submitted, cluster):
    _, killed = submitted
    states = {job["JobId"]: job["JobState"] for job in cluster.jobs()}
    assert states.pop(killed) in ("FAILED", "CANCELLED")
    assert set(states.values()) == {"COMPLETED"}


def test_only_encoding_asks_for_a_gpu(submitted, cluster):
    jobs = cluster.jobs()
    with_gpu = [job for job in jobs if any("gpu" in value for name, value in job.items() if name.lower().startswith("tres"))]
    assert len(jobs) - len(with_gpu) > 5
    assert {job["Comment"].partition("_wildcards_")[0] for job in with_gpu} == {"rule_extract_features", "rule_embed_texts"}
