"""Measure false discoveries of shift: comparisons of demo images that differ in nothing, by Welch's test and by ranks.

    python benchmarks/shift_calibration.py

- Random split: two groups drawn at random from the discovery images. Nothing shifted, so every q < 0.05 is false.
- Shuffled years: the last year of the monitoring images against the first, or against all others, after the years are shuffled.
- Unmoved group: 20 images of the first year beside the later years, all compared with the other images of the first year. Only
  discoveries of the unmoved group count. q is taken within it, or over all groups together.
- Real years: what the last year's comparison finds where something did shift. Its control is the row of the shuffled years.

Pairs are compared by their coefficients, concepts by both of their scores.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import add_work, demo_config, interval, make_parser, parse, report, run_workflow, welch_pairs, working_folder

from nadpipe.circuit import shift
from nadpipe.progress import track
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.readout import read_readout
from nadpipe.store.selection import read_selection
from nadpipe.store.shards import join, open_shards

LEVEL = 0.05
SPLITS = ["60/60", "20/60", "60/420", "60/540", "20/580", "20/180"]  # images of the group / of the reference
CONCEPT_SPLITS = ["100/100", "60/420", "20/580"]
TESTS = {"Welch": welch_pairs, "ranks": shift.compare_pairs}
UNMOVED = 20  # images

Comparisons = dict[str, tuple[torch.Tensor, torch.Tensor]]  # by group: its values (image, test) and those of its reference
Generator = np.random.Generator


@dataclasses.dataclass(frozen=True)
class Images:
    """Values of the tests for the images of a data set: coefficients of all pairs, or scores of all concepts."""

    value: torch.Tensor
    group: np.ndarray

    def random_split(self, sizes: str, rng: Generator) -> Comparisons:
        """Return the comparison of two random groups. sizes: such as 60/420."""
        size, reference_size = map(int, sizes.split("/"))
        order = rng.permutation(len(self.value))[: size + reference_size]
        return {"random": (self.value[order[:size]], self.value[order[size:]])}

    def last_year(self, others: bool, rng: Generator | None) -> Comparisons:
        """Return the comparison of the last year with the first, or with all others. rng: shuffles the years."""
        group = self.group if rng is None else rng.permutation(self.group)
        *before, last = shift.sort_groups(np.unique(group))
        reference = np.isin(group, before if others else before[:1])
        return {last: (self.value[group == last], self.value[reference])}

    def unmoved(self, rng: Generator) -> Comparisons:
        """Return the comparisons of some images of the first year, and of the later years, with the rest of the first year."""
        first, *later = shift.sort_groups(np.unique(self.group))
        order = rng.permutation(np.flatnonzero(self.group == first))
        count = min(UNMOVED, len(order) // 2)
        groups = {"unmoved": order[:count]} | {name: np.flatnonzero(self.group == name) for name in later}
        return {name: (self.value[rows], self.value[order[count:]]) for name, rows in groups.items()}


def main() -> None:
    """Make coefficients and scores with the workflow, and compare groups that differ in nothing."""
    parser = make_parser(__doc__)
    parser.add_argument("--runs", type=int, default=25, help="runs with pairs")
    parser.add_argument("--concept-runs", type=int, default=400, help="runs with concepts")
    parser.add_argument("--splits", nargs="+", default=SPLITS, help="sizes of the random splits of pairs")
    parser.add_argument("--concept-splits", nargs="+", default=CONCEPT_SPLITS, help="and of concepts")
    add_work(parser)
    given = parse(parser, runs=2, concept_runs=3, splits=["6/6"], concept_splits=["4/12"])
    with working_folder(given.work):
        targets = ["results/artifacts/selection/concepts.zarr"]
        config = demo_config(given.tiny)
        for dataset in ("discovery", "monitoring"):
            shards = config["datasets"][dataset].get("shards", 1)
            targets += [f"results/artifacts/{dataset}/contributions/{shard}.zarr" for shard in range(shards)]
        run_workflow(config, *targets)
        data = {dataset: read(Path("results/artifacts"), dataset) for dataset in ("discovery", "monitoring")}
    rows = list(track(measure(data, given), "comparing", "row"))
    title = f"Runs with any discovery (q < {LEVEL}), with the 95% interval of their share, and mean number of discoveries"
    report(given, "shift_calibration", title, rows)


def measure(data: dict[str, dict[str, Images]], given: argparse.Namespace) -> Iterator[dict]:
    """Yield one row per kind of comparison."""
    for unit, runs, splits in (("pairs", given.runs, given.splits), ("concepts", given.concept_runs, given.concept_splits)):
        discovery, monitoring = data["discovery"][unit], data["monitoring"][unit]
        for sizes in splits:
            yield count(f"random split, {sizes}", unit, runs, partial(discovery.random_split, sizes))
        yield count("shuffled years, last against first", unit, runs, partial(monitoring.last_year, False))
        yield count("shuffled years, last against all others", unit, runs, partial(monitoring.last_year, True))
        yield count("unmoved group, q within it", unit, runs, monitoring.unmoved)
        yield count("unmoved group, q over all groups", unit, runs, monitoring.unmoved, pooled=True)
        yield count("real years, last against first", unit, 1, lambda _, images=monitoring: images.last_year(False, None))


def count(name: str, unit: str, runs: int, compare: Callable[[Generator], Comparisons], pooled: bool = False) -> dict:
    """Return a row with the discoveries of both tests in the first group of each run. pooled: q over all groups."""
    found: dict[str, list[int]] = {test: [] for test in TESTS}
    for run in range(runs):
        groups = compare(np.random.default_rng([11, run]))
        for test, function in TESTS.items():
            tables = [pd.DataFrame({"group": group, "p": function(*both)[1]}) for group, both in groups.items()]
            table = pd.concat(tables, ignore_index=True)
            q = shift.benjamini_hochberg(table["p"].to_numpy()) if pooled else shift.adjust_by_group(table)
            found[test].append(int((q < LEVEL)[table["group"] == next(iter(groups))].sum()))
    size, reference = map(len, next(iter(groups.values())))
    row = {"comparison": name, "tests of": unit, "images": f"{size} / {reference}", "runs": runs}
    for test, discoveries in found.items():
        hits = np.count_nonzero(discoveries)
        row[f"{test}: runs with a discovery"] = interval(hits, runs) if runs > 1 else f"{hits} of 1"
        row[f"{test}: mean discoveries"] = f"{np.mean(discoveries):.1f}"
    return row


def read(artifacts: Path, dataset: str) -> dict[str, Images]:
    """Return coefficients of pairs and scores of concepts of a data set."""
    readout, model = read_readout(artifacts / "model/readout.zarr")
    stores = open_shards(sorted((artifacts / dataset / "contributions").glob("*.zarr")), CONTRIBUTIONS, model)
    selected = read_selection(artifacts / "selection/concepts.zarr", model)
    coefficient, embedding = (torch.from_numpy(join(stores, name)) for name in ("coefficient", "embedding"))
    scores = shift.concept_scores(coefficient, embedding, selected.pairs, selected.query, readout)
    group = pd.read_parquet(artifacts / dataset / "images.parquet").get("group", pd.Series(dtype=str)).astype(str).to_numpy()
    return {"pairs": Images(coefficient.flatten(1), group), "concepts": Images(torch.cat(scores, dim=1), group)}


if __name__ == "__main__":
    main()
