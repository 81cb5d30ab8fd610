"""Compare the CLIP-ResNet and the vision transformer of the demo: the ledger, names, faithfulness and segmentation.

    python benchmarks/towers.py

Both models were trained on the same world with the same losses and see the same images of seed 0. The vision transformer is
decomposed once for every block whose neurons a head reads; docs/vit_demo.yaml chooses the block that segments. Every number has
its controls in the rows below it: units that mean nothing, and the same architecture with random weights.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from common import ROOT, add_work, demo_config, make_parser, parse, random_checkpoint, report, run_workflow, working_folder
from naming import SHARES as ALL_SHARES
from naming import cell, name_by_others

from nadpipe.demo.checkpoint import unpack_model
from nadpipe.demo.files import CHECKPOINT, VIT_CHECKPOINT

NAMED = ("results/ledger.csv", "results/naming.csv")
ALL = (*NAMED, "results/segmentation.csv", "results/faithfulness.csv")
UNTRAINED = (*NAMED, "results/segmentation.csv")
RULES = {"nearest": "nearest_text", "correlated": "active_text"}
SHARES = (0.1, 1.0)  # of the units, largest first
PARTS = {  # of the ledger, in the order of the rows
    "pairs": "pairs",
    "heads": "heads: what they read from everything else",
    "mlp": "MLPs at the class token",
    "input": "class embedding and first norm",
    "constants": "constants",
    "shift": "bias of the last norm",
}
Column = dict[tuple[str, str], str]  # one run's numbers by measure and by units or control


def main() -> None:
    """Run the workflow for both models, for every block and with random weights, and print their numbers side by side."""
    parser = make_parser(__doc__)
    add_work(parser)
    parser.add_argument("--blocks", type=int, nargs="*", help="other blocks of the vision transformer; by default all")
    parser.add_argument("--no-random-weights", action="store_true", help="leave out the models with random weights")
    given = parse(parser)
    config = demo_config(given.tiny)
    overlay = yaml.safe_load((ROOT / "docs" / "vit_demo.yaml").read_text())
    vit = config | {section: config[section] | keys for section, keys in overlay.items()}
    chosen = vit["model"]["block"]
    blocks = range(unpack_model(VIT_CHECKPOINT)[1]["vision_cfg"]["layers"] - 1)  # of the last block no head reads the neurons
    others = given.blocks if given.blocks is not None else [] if given.tiny else blocks
    with working_folder(given.work):
        untrained = not given.no_random_weights
        columns = {"ResNet": compare("resnet", config, CHECKPOINT, untrained)}
        for block in sorted({chosen, *others}):
            with_block = vit | {"model": vit["model"] | {"block": block}}
            name = f"ViT, block {block}"
            if block == chosen:
                columns[name] = compare("vit", with_block, VIT_CHECKPOINT, untrained and not given.tiny)
            else:
                columns[name] = read_run(run(f"vit_{block}", with_block, NAMED))
    keys = list(dict.fromkeys(key for column in columns.values() for key in column))
    order = {measure: place for place, measure in enumerate(dict.fromkeys(measure for measure, _ in keys))}
    rows = [
        {"measure": measure, "units": units} | {name: column.get((measure, units), "") for name, column in columns.items()}
        for measure, units in sorted(keys, key=lambda key: order[key[0]])
    ]
    report(given, "towers", "The demo's CLIP-ResNet and its vision transformer side by side, with controls", rows)


def compare(name: str, config: Mapping[str, Any], checkpoint: Path, with_untrained: bool) -> Column:
    """Return all numbers of one model, and, if `with_untrained`, those of the same architecture with random weights."""
    trained = run("." if name == "resnet" else name, config, ALL)  # the folder of the same run in the other scripts
    column = read_run(trained)
    if not with_untrained:
        return column
    with inside(f"{name}_random"):
        _, random = random_checkpoint(unpack_model(checkpoint)[1], Path())
    if "block" in config["model"]:
        random |= {"block": config["model"]["block"]}
    untrained = run(f"{name}_random", {**config, "model": random}, UNTRAINED)
    for (measure, units), value in read_run(untrained).items():
        if units in ("pairs", "method"):
            column[measure, f"{units}, random weights"] = value
    for cells in name_by_others(untrained, trained).values():
        for share, value in zip(ALL_SHARES, cells, strict=True):
            if share in SHARES:
                column[f"active_text, largest {share:.0%}", "pairs, random weights, named by the trained model"] = value
    return column


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Change to a folder below the current one, which is made if it is missing."""
    Path(name).mkdir(exist_ok=True)
    with contextlib.chdir(name):
        yield


def run(name: str, config: Mapping[str, Any], targets: tuple[str, ...]) -> Path:
    """Make tables with the workflow in a folder, and return its results."""
    with inside(name):
        run_workflow(dict(config), *targets)
    return Path(name, "results").absolute()


def read_run(results: Path) -> Column:
    """Return the numbers of all tables that a run has."""
    column: Column = {}
    for name, read in READERS.items():
        if (results / f"{name}.csv").exists():
            column |= read(pd.read_csv(results / f"{name}.csv"))
    return column


def read_ledger(table: pd.DataFrame) -> Column:
    """Return each part's share of the embedding's energy and variance, summed over layers."""
    summed = table.groupby("part")[["energy", "variance"]].sum()
    rows = [(f"share of the embedding's {kind}", part) for kind in summed for part in PARTS if part in summed.index]
    return {(measure, PARTS[part]): f"{summed.loc[part, measure.split()[-1]]:.3f}" for measure, part in rows}


def read_naming(table: pd.DataFrame) -> Column:
    """Return the share of right words of pairs and of controls, and the difference of the pairs to the strongest control."""
    column: Column = {}
    for rule, title in RULES.items():
        for share in SHARES:
            rows = table[(table["rule"] == rule) & np.isclose(table["share"], share)].set_index("units")
            measure = f"{title}, largest {share:.0%}"
            for units, row in rows.iterrows():
                column[measure, units] = cell(row["agreement"], row["agreement_low"], row["agreement_high"])
            closest = rows.loc[rows["difference"].idxmin()]
            difference = (closest["difference"], closest["difference_low"], closest["difference_high"])
            column[measure, "pairs minus the strongest of these controls"] = cell(*difference)
    return column


def read_faithfulness(table: pd.DataFrame) -> Column:
    """Return the mean change of scores, and the mean AUROC, after ablation of selected pairs and of controls."""
    selected = table[table["rule"] == "selected"]
    concepts = set(selected.loc[selected["auroc"].notna(), "measured"])
    ablated, measured = selected["ablated"], selected["measured"]
    same = ablated == measured
    change, auroc = "change of the score, standard deviations", "AUROC of the score"
    kinds = {
        "own selected pairs": same & measured.isin(concepts),
        "pairs selected for other concepts": ~same & ablated.isin(concepts),
        "random pairs": ablated.str.startswith("random pairs"),
        "own pairs of random directions": same & ablated.str.startswith("random direction"),
        "own pairs of random mixtures of texts": same & ablated.str.startswith("random mixture"),
    }
    column: Column = {(change, kind): f"{selected.loc[rows, 'change_highest'].mean():.2f}" for kind, rows in kinds.items()}
    own = selected[kinds["own selected pairs"]]
    column[auroc, "before ablation"] = f"{own['auroc'].mean():.3f}"
    for kind in ("own selected pairs", "random pairs"):
        column[auroc, f"without {kind}"] = f"{selected.loc[kinds[kind], 'auroc_ablated'].mean():.3f}"
    return column


def read_segmentation(table: pd.DataFrame) -> Column:
    """Return the mIoU of each method with its interval."""
    return {(f"mIoU, {row.method}", "method"): cell(row.miou, row.miou_low, row.miou_high) for row in table.itertuples()}


READERS = {
    "ledger": read_ledger,
    "naming": read_naming,
    "faithfulness": read_faithfulness,
    "segmentation": read_segmentation,
}

if __name__ == "__main__":
    main()
