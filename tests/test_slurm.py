"""A part of the demo on a real Slurm, through the profile that the README names: groups, GPUs, a killed job, the same table."""

import os
import re
import shutil
from importlib.util import find_spec

import pandas as pd
import pytest
import slurm

REQUIRED = os.environ.get("NADPIPE_SLURM") == "1"  # .ci/run sets it: there, a skip is a failure
TABLE = "results/registers.parquet"
FEATURES = "results/artifacts/discovery/features/0.zarr"
TEXTS, READOUT = "results/artifacts/text/segmentation.zarr", "results/artifacts/model/readout.zarr"


@pytest.fixture(scope="module")
def submitted(tmp_path_factory, finished):
    """Make a part of the small demo again as Slurm jobs. Yield checkout, id of the killed job, and cluster."""
    reason = slurm.missing()
    if reason and not REQUIRED:
        pytest.skip(f"Slurm: {reason}")
    assert reason is None
    checkout = finished.copy(tmp_path_factory.mktemp("submitted"))
    for path in (FEATURES, TEXTS, READOUT):
        shutil.rmtree(checkout.folder / path)
    (checkout.folder / TABLE).unlink()
    cluster = slurm.Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        killed = slurm.run_and_kill(checkout, cluster, FEATURES)
        checkout.run(TABLE, TEXTS, *slurm.OPTIONS, timeout=900)
        yield checkout, killed, cluster
    finally:
        cluster.stop()


def test_slurm_makes_the_same_table_as_a_local_run(submitted, finished):
    checkout, _, _ = submitted
    on_slurm, local = (pd.read_parquet(folder / TABLE) for folder in (checkout.folder, finished.folder))
    pd.testing.assert_frame_equal(on_slurm, local, rtol=1e-5)
    assert "Nothing to be done" in checkout.run(TABLE, TEXTS).stderr


def test_every_job_except_the_killed_one_succeeded(submitted):
    _, killed, cluster = submitted
    states = {job["JobId"]: job["JobState"] for job in cluster.jobs()}
    assert states.pop(killed) in ("FAILED", "CANCELLED")
    assert set(states.values()) == {"COMPLETED"}


def test_submitted_jobs_request_a_gpu_only_for_encoding(submitted):
    jobs = submitted[2].jobs()
    with_gpu = [job for job in jobs if any("gpu" in value for name, value in job.items() if name.lower().startswith("tres"))]
    assert len(jobs) - len(with_gpu) == 2  # groups: readout, registers
    assert {job["Comment"].partition("_wildcards_")[0] for job in with_gpu} == {"rule_extract_features", "rule_embed_texts"}


@pytest.mark.skipif(find_spec("snakemake_executor_plugin_slurm") is None, reason="the extra [slurm] is not installed")
def test_all_rules_are_planned_as_slurm_jobs_and_only_encoding_requests_a_gpu(finished):
    planned = finished.run("-n", "all", "--forceall", "--profile", "profiles/slurm").stdout
    jobs = re.findall(r"^ *rule (\w+):\n(?: +.*\n)*? +resources: (.*)$", planned, re.MULTILINE)
    assert len({rule for rule, _ in jobs}) > 30
    assert {rule for rule, resources in jobs if "gpu=1" in resources} == {"extract_features", "embed_texts"}
