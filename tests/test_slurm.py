"""The demo on a real Slurm: the same tables, through the profile that the README names."""

import os

import pandas as pd
import pytest
import slurm
from checkout import Checkout

WANTED = os.environ.get("NADPIPE_SLURM") == "1"  # .ci/run sets it: there, a skip is a failure
TARGET = "results/segmentation.csv"


@pytest.fixture(scope="module")
def submitted(tmp_path_factory):
    """Run the small demo with all but the local rules as Slurm jobs; yield the checkout, the killed job's id, the cluster."""
    reason = slurm.missing()
    if reason and not WANTED:
        pytest.skip(f"Slurm: {reason}")
    assert reason is None
    cluster = slurm.Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        folder = tmp_path_factory.mktemp("submitted")
        killed = slurm.run_the_demo(folder, cluster, TARGET)
        yield Checkout.open(folder), killed, cluster
    finally:
        cluster.stop()


def test_slurm_makes_the_table_that_a_laptop_makes(submitted, finished):
    made, _, _ = submitted
    on_slurm, local = (pd.read_csv(folder / TARGET) for folder in (made.folder, finished.folder))
    pd.testing.assert_frame_equal(on_slurm, local, rtol=1e-5)
    assert "Nothing to be done" in made.run(TARGET).stderr


def test_every_job_but_the_killed_one_ended_well(submitted):
    _, killed, cluster = submitted
    states = {job["JobId"]: job["JobState"] for job in cluster.jobs()}
    assert states.pop(killed) in ("FAILED", "CANCELLED")
    assert set(states.values()) == {"COMPLETED"}


def test_only_encoding_asks_for_a_gpu(submitted):
    jobs = submitted[2].jobs()
    with_gpu = [job for job in jobs if any("gpu" in value for name, value in job.items() if name.lower().startswith("tres"))]
    assert len(jobs) - len(with_gpu) > 5
    assert {job["Comment"].partition("_wildcards_")[0] for job in with_gpu} == {"rule_extract_features", "rule_embed_texts"}
