"""Build hook of the wheel: put the workflow into the package, where `nadpipe run` finds it without a clone."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WORKFLOW = ("Snakefile", "config.yaml", "rules", "envs", "profiles")


class Workflow(BuildHookInterface):
    """Add the workflow to the files of a wheel. An editable install uses those of the clone."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Extend the map of files; version is `standard` or `editable`."""
        if version != "editable":
            build_data["force_include"] |= {name: f"nadpipe/workflow/{name}" for name in WORKFLOW}
