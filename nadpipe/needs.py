"""Find the needs of results that a config does not meet.

The Snakefile asks at every start which results `all` can make, so this module imports nothing heavy.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from nadpipe.data.layouts import LAYOUTS
from nadpipe.data.listing import binary_columns

Need = Literal["segmentation", "masks", "concepts", "groups", "labels", "attributes", "analyses"]


def missing_needs(config: Mapping[str, Any]) -> dict[Need, str]:
    """Return the needs that a complete config does not meet, each with the key that meets it and what to do.

    segmentation: data sets to segment. masks: masks of at least one of them. concepts: texts for the shift. groups: groups of
    `datasets.monitoring`. analyses: the data set `analyses.dataset`. labels, attributes: its class labels and its 0/1 columns.
    Groups and labels need at least two values. Raises NadpipeError if a table or a folder is unreadable.
    """
    return dict(_missing(config))


def missing_masks(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the segmented data sets without masks, each with the key that would give masks and what to do."""
    lacking = {name: _lacking(config, name, "masks") for name in config["segmentation"]["datasets"]}
    return {name: reason for name, reason in lacking.items() if reason is not None}


def _missing(config: Mapping[str, Any]) -> Iterator[tuple[Need, str]]:
    if not config["segmentation"]["datasets"]:
        yield "segmentation", "segmentation.datasets: empty; list data sets to segment"
    elif len(without_masks := missing_masks(config)) == len(config["segmentation"]["datasets"]):
        yield "masks", next(iter(without_masks.values()))
    if not config["shift"]["concepts"]:
        yield "concepts", "shift.concepts: empty; list texts to score"
    if "monitoring" not in config["datasets"]:
        yield "groups", "datasets.monitoring: missing; add a data set whose images have groups"
    elif lacking := _lacking(config, "monitoring", "groups"):
        yield "groups", lacking
    name = config["analyses"]["dataset"]
    if name is None:
        no_dataset = "analyses.dataset: not set; name a data set"
        yield "analyses", no_dataset
        yield "labels", f"{no_dataset} with labels"
        yield "attributes", f"{no_dataset} with 0/1 columns"
        return
    if lacking := _lacking(config, name, "labels"):
        yield "labels", lacking
    source = config["datasets"][name]
    if source["labels"] is not None:
        return
    path = Path(source["path"])
    if not LAYOUTS[source["layout"]].is_file:
        yield "attributes", f"datasets.{name}.labels: not set; give a CSV file with 0/1 columns"
    elif path.is_file() and not binary_columns(path):
        yield (
            "attributes",
            f"datasets.{name}.path: {path} has no 0/1 column; add one, or give a CSV file as datasets.{name}.labels",
        )


def _lacking(config: Mapping[str, Any], name: str, what: Literal["masks", "groups", "labels"]) -> str | None:
    """Return the key of a data set that would give masks, groups or labels, and what to do; None if it has them."""
    source = config["datasets"][name]
    lacking = LAYOUTS[source["layout"]].lacks(what, source)
    return lacking and f"datasets.{name}.{lacking}"
