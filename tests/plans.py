"""Plan many runs in one process: what Snakemake would rerun after a change of settings or code.

A plan takes 0.2 s here, but 2 to 3 s as a process `snakemake -n`. Every plan reads the Snakefile and the records of the
finished run again. A plan for edited code also imports nadpipe again.
"""

import gc
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import yaml


class Plan(dict[str, int]):
    """Jobs per rule that would run. `following`: rules of which a job would run because an input of it is made again."""

    def __init__(self, jobs: dict[str, int], following: Iterable[str]) -> None:
        """Store the jobs as a dictionary."""
        super().__init__(jobs)
        self.following = frozenset(following)


def plan_settings(folder: Path, changes: list[dict]) -> list[Plan]:
    """Return the jobs per rule that a finished run would rerun with each of these settings laid over its config.yaml."""
    return _ask(folder, [{"settings": settings} for settings in changes])


def plan_edits(folder: Path, edits: list[dict[str, str]]) -> list[Plan]:
    """Return the jobs per rule that a finished run would rerun after each edit: new contents by path below its folder."""
    return _ask(folder, [{"files": files} for files in edits])


def _ask(folder: Path, requests: list[dict]) -> list[Plan]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # bytecode of an edit would be valid for another edit in the same second
    done = subprocess.run(
        [sys.executable, __file__], cwd=folder, env=environment, input=json.dumps(requests), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [Plan(*plan) for plan in json.loads(done.stdout)]


def _plan(overlay: Path | None) -> tuple[dict[str, int], list[str]]:
    """Plan `all` in the current folder through Snakemake's API, as `snakemake -n` does. Return the arguments of a Plan."""
    from snakemake.api import SnakemakeApi
    from snakemake.settings.enums import Quietness
    from snakemake.settings.types import ConfigSettings, DAGSettings, ExecutionSettings, OutputSettings, ResourceSettings

    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=2),
            config_settings=ConfigSettings(configfiles=[Path("config.yaml"), overlay] if overlay else []),
            snakefile=Path("Snakefile").resolve(),
        )
        dag = workflow.dag(DAGSettings(targets={"all"}))
        dag.execute_workflow(executor="dryrun", execution_settings=ExecutionSettings(lock=False))
        planned = workflow._workflow.dag
        jobs = [job for job in planned.jobs if planned.needrun(job) and job.rule.name != "all"]
        following = {job.rule.name for job in jobs if planned.reason(job).updated_input_run}
        return Counter(job.rule.name for job in jobs), sorted(following)


def _answer(request: dict, overlay: Path) -> tuple[dict[str, int], list[str]]:
    if "settings" in request:
        overlay.write_text(yaml.safe_dump(request["settings"]))
        return _plan(overlay)
    originals = {path: Path(path).read_text() if Path(path).exists() else None for path in request["files"]}
    try:
        for path, content in request["files"].items():
            Path(path).write_text(content)
        _forget_package()
        return _plan(None)
    finally:
        for path, content in originals.items():
            Path(path).unlink() if content is None else Path(path).write_text(content)


def _forget_package() -> None:
    """Have the package imported afresh, but keep what fingerprints know of unchanged texts: parsing takes most of the time."""
    fingerprint = sys.modules.get("nadpipe.fingerprint")
    for name in [name for name in sys.modules if name.partition(".")[0] == "nadpipe"]:
        del sys.modules[name]
    if fingerprint is not None and Path(fingerprint.__file__).read_text() == _loaded.setdefault(
        fingerprint.__file__, Path(fingerprint.__file__).read_text()
    ):
        by_text = (fingerprint._parse, fingerprint._unparse)
        for cached in [value for value in vars(fingerprint).values() if hasattr(value, "cache_clear") and value not in by_text]:
            cached.cache_clear()
        sys.modules["nadpipe.fingerprint"] = fingerprint


def _parse_once() -> None:
    """Have Snakemake parse each version of a rule file once, which takes a third of a plan."""
    from snakemake.api import Workflow

    workflow = sys.modules[Workflow.__module__]
    parse, parsed = workflow.parse, {}

    def parse_once(snakefile: object, planned: object, linemap: dict[int, int], rulecount: int = 0) -> tuple[str, int]:
        path = snakefile.get_path_or_uri(secret_free=True)
        key = path, Path(path).read_text(), rulecount
        if key not in parsed:
            lines: dict[int, int] = {}
            parsed[key] = parse(snakefile, planned, linemap=lines, rulecount=rulecount), lines
        result, lines = parsed[key]
        linemap |= lines
        return result

    workflow.parse = parse_once


_loaded: dict[str, str] = {}  # source of the loaded fingerprint module, by its path


def main() -> None:
    """Read requests from standard input as JSON and write their plans to standard output."""
    sys.path[:] = [folder for folder in sys.path if folder != str(Path(__file__).parent)]
    requests = json.load(sys.stdin)
    gc.set_threshold(1_000_000)  # graphs of jobs and syntax trees are many small objects; looking through them takes long
    output = os.dup(1)
    os.dup2(2, 1)  # separate the plans from everything that Snakemake prints
    _parse_once()
    path = Path(f".plan-{os.getpid()}.yaml").resolve()
    plans = [_answer(request, path) for request in requests]
    path.unlink(missing_ok=True)
    os.write(output, json.dumps(plans).encode())


if __name__ == "__main__":
    main()
