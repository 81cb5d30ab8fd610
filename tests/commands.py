"""Render the shell command of every job of `all` in the current folder, without running any."""

import json
import os
import sys
from pathlib import Path

SNAKEFILE = Path(__file__).resolve().parents[1] / "Snakefile"


def main() -> None:
    """Write rule, wildcards and command of every job to standard output as JSON."""
    from snakemake.api import SnakemakeApi
    from snakemake.settings.enums import Quietness
    from snakemake.settings.types import DAGSettings, ExecutionSettings, OutputSettings, ResourceSettings

    output = os.dup(1)
    os.dup2(2, 1)  # separate the commands from everything that Snakemake prints
    snakefile = Path(sys.argv[1]) if sys.argv[1:] else SNAKEFILE
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow = api.workflow(resource_settings=ResourceSettings(cores=2), snakefile=snakefile)
        dag = workflow.dag(DAGSettings(targets={"all"}))
        dag.execute_workflow(executor="dryrun", execution_settings=ExecutionSettings(lock=False))
        jobs = [
            {"rule": job.rule.name, "wildcards": dict(job.wildcards.items()), "command": job.shellcmd}
            for job in workflow._workflow.dag.jobs
            if job.is_shell
        ]
    os.write(output, json.dumps(jobs).encode())


if __name__ == "__main__":
    sys.path[:] = [folder for folder in sys.path if folder != str(Path(__file__).parent)]
    main()
