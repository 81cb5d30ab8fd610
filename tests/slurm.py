"""A one-node Slurm for the tests, without systemd, cgroups and accounting. It is stopped through its pid files."""

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from checkout import Checkout

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue")
CONFIG = Path("/etc/slurm/slurm.conf")  # the executor strips SLURM_* variables, so no other path works
OPTIONS = (
    *("--profile", "profiles/slurm", "--slurm-status-command", "squeue"),  # without accounting
    *("--slurm-init-seconds-before-status-checks", "6"),
)
_MARK = "# made by nadpipe's tests"


def missing() -> str | None:
    """Return the reason why Slurm cannot be started here, or None if it can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian packages slurm-wlm and munge)"
    if os.getuid() != 0:
        return "only root can start slurmd and write /etc/slurm"
    if CONFIG.exists() and _MARK not in CONFIG.read_text():
        return f"{CONFIG} belongs to another Slurm"
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        return "the extra [slurm] is not installed"
    return None


class Slurm:
    """Daemons whose files are in one folder, started on creation and ended by `stop`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("state", "spool", "munge"):
            (folder / name).mkdir(mode=0o700)
        CONFIG.parent.mkdir(exist_ok=True)
        CONFIG.write_text(self._config())
        CONFIG.with_name("gres.conf").write_text(f"{_MARK}\nName=gpu File=/dev/null\n")
        key = folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        places = {"key-file": key, **{f"{name}-file": folder / "munge" / name for name in ("pid", "log", "seed")}}
        options = [f"--{name}={path}" for name, path in places.items()]
        self._run("munged", "--force", f"--socket={folder / 'munge' / 'socket'}", *options)
        self._run("slurmctld", "-c")
        self._run("slurmd")
        self._wait()

    def _config(self) -> str:
        host = socket.gethostname().split(".")[0]
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 1024
        lines = {
            "ClusterName": "nadpipe",
            "SlurmctldHost": host,
            "SlurmctldPort": _free_port(),
            "SlurmdPort": _free_port(),
            "SlurmUser": "root",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.folder / 'munge' / 'socket'}",
            "StateSaveLocation": self.folder / "state",
            "SlurmdSpoolDir": self.folder / "spool",
            "SlurmctldPidFile": self.folder / "slurmctld.pid",
            "SlurmdPidFile": self.folder / "slurmd.pid",
            "SlurmctldLogFile": self.folder / "slurmctld.log",
            "SlurmdLogFile": self.folder / "slurmd.log",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            "AccountingStorageType": "accounting_storage/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "MinJobAge": 3600,
            "ReturnToService": 2,
            "GresTypes": "gpu",
        }
        rows = [f"{name}={value}" for name, value in lines.items()]
        rows.append(f"NodeName={host} CPUs={os.cpu_count()} RealMemory={memory} Gres=gpu:1 State=UNKNOWN")
        rows.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
        return "\n".join([_MARK, *rows, ""])

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    def _wait(self, seconds: float = 60) -> None:
        """Wait until the node accepts jobs."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            state = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, timeout=30).stdout.strip()
            if state in ("idle", "mixed", "allocated"):
                return
            time.sleep(0.5)
        logs = [(self.folder / f"{name}.log").read_text()[-1500:] for name in ("slurmctld", "slurmd")]
        raise AssertionError("\n".join([f"node is {state!r} after {seconds} s", *logs]))

    def jobs(self) -> list[dict[str, str]]:
        """Return the properties of every job: what it requested and how it ended."""
        shown = subprocess.run(["scontrol", "show", "job", "-o"], capture_output=True, text=True, timeout=60, check=True).stdout
        lines = [line for line in shown.splitlines() if line.startswith("JobId=")]
        return [dict(field.split("=", 1) for field in line.split() if "=" in field) for line in lines]

    def kill(self, comment: str, began: Callable[[], bool], seconds: float) -> str:
        """Kill all processes of the first running job with this comment as soon as its Snakemake has begun; return its id."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for job in self.jobs():
                if job["JobState"] == "RUNNING" and job.get("Comment", "").startswith(comment):
                    while not began() and time.monotonic() < end:
                        time.sleep(0.1)
                    self._run("scancel", "--full", "--signal=KILL", job["JobId"])
                    return job["JobId"]
            time.sleep(0.5)
        raise AssertionError(f"no job {comment} ran within {seconds} s")

    def stop(self) -> None:
        """End the daemons and remove the config."""
        for name in (self.folder / "slurmd.pid", self.folder / "slurmctld.pid", self.folder / "munge" / "pid"):
            if name.exists():
                _end(int(name.read_text()))
        for name in (CONFIG, CONFIG.with_name("gres.conf")):
            name.unlink(missing_ok=True)


def run_and_kill(checkout: Checkout, running: "Slurm", target: str) -> str:
    """Make a store of features by plain processes in bounded time; kill the first job and return its id."""
    logs = checkout.folder / "logs" / "extract_features"
    earlier = {path: path.stat().st_mtime_ns for path in logs.rglob("*.log")}

    def began() -> bool:
        return any(path.stat().st_mtime_ns != earlier.get(path) for path in logs.rglob("*.log"))

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(checkout.run, target, *OPTIONS, timeout=900, warm=False)
        killed = running.kill("rule_extract_features", began, seconds=450)
        ended.result()
    return killed


def _end(process: int) -> None:
    """Ask a process to end and wait for it; kill it after ten seconds."""
    os.kill(process, signal.SIGTERM)
    for _ in range(100):
        if not Path(f"/proc/{process}").exists():
            return
        time.sleep(0.1)
    os.kill(process, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
