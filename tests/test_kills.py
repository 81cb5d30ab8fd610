"""A run that meets a full disk and is killed four times ends with the tables of an undisturbed run."""

import subprocess

import pytest
from checkout import Checkout
from kills import KINDS, Victim, different_tables

TARGETS = ("results/segmentation.csv", "results/shift.csv")
TOO_SMALL, ENOUGH = "size=44m", "size=2g"


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    return Victim(Checkout(tmp_path_factory.mktemp("killed")), TARGETS)


@pytest.fixture(scope="module")
def small_disk(victim):
    """Put the results on a disk that is too small at first; yield a function that changes its options."""
    folder = victim.checkout.folder / "results"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    mounted = subprocess.run([*mount, TOO_SMALL, "tmpfs", str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"full disk: a file system cannot be mounted here ({mounted.stderr.strip()})")
    yield lambda options: subprocess.run([*mount, f"remount,{options}", "tmpfs", str(folder)], check=True)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_reported_in_one_line_and_leaves_no_partial_file(victim, small_disk):
    done = victim.checkout.run(*TARGETS, check=False)
    assert done.returncode != 0
    logs = [path.read_text() for path in (victim.checkout.folder / "logs").rglob("*.log")]
    reported = [line for log in logs for line in log.splitlines() if "No space left on device" in line]
    assert reported
    assert all(line.startswith("nadpipe ") for line in reported)
    assert not any("Traceback" in log for log in logs)
    assert victim.leftovers() == []
    small_disk(ENOUGH)


def test_a_read_only_folder_is_reported(victim, small_disk):
    small_disk("ro")
    done = victim.checkout.run(*TARGETS, check=False)
    small_disk("rw")
    assert done.returncode != 0
    assert "Read-only file system" in done.stdout + done.stderr


@pytest.mark.parametrize("kill", range(4))
def test_a_killed_run_is_unlocked_and_continues(victim, kill):
    assert victim.run_and_kill(KINDS[kill % len(KINDS)], skip=kill) is not None
    victim.recover()


def test_a_killed_run_ends_with_the_tables_of_an_undisturbed_run(victim, finished):
    victim.recover(finish=True)
    results = victim.checkout.folder / "results"
    assert different_tables(results, finished.folder / "results") == []
    assert victim.leftovers() == []
    assert "Nothing to be done" in victim.checkout.run(*TARGETS).stderr
