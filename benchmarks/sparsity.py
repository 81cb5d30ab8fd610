"""Measure which attributes the largest pairs of the demo concern, and how well few pairs rank the images by attribute.

    python benchmarks/sparsity.py

A pair selects the attribute (0/1 column of the monitoring images) that its coefficient correlates with most. The average
precision of an attribute is that of the images ranked by the cosine of their rebuilt embedding to its text. As in
results/sparsity.csv, some pairs are kept, and the others are set to their mean.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import add_work, demo_config, make_parser, parse, report, run_workflow, working_folder
from sklearn.metrics import average_precision_score

from nadpipe.circuit import ablation, naming
from nadpipe.demo.world import BACKGROUNDS, COLOURS, KINDS, TEXTURES
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.texts import TEXT
from nadpipe.store.pairs import open_pair_directions
from nadpipe.store.readout import read_readout
from nadpipe.store.shards import join, open_shards

GROUPS = {"kinds": tuple(KINDS), "colours": tuple(COLOURS), "textures": TEXTURES, "backgrounds": BACKGROUNDS}
SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the pairs


def main() -> None:
    """Make the contributions with the workflow, and keep the largest, the smallest and random pairs."""
    parser = make_parser(__doc__)
    parser.add_argument("--draws", type=int, default=5, help="random selections, whose numbers are averaged")
    add_work(parser)
    given = parse(parser, draws=2)
    with working_folder(given.work):
        names = ("directions/pair.zarr", "text/labels.zarr", "monitoring/contributions/0.zarr")
        run_workflow(demo_config(given.tiny), *(f"results/artifacts/{name}" for name in names))
        rows = measure(Path("results/artifacts"), given.draws)
    title = (
        "Share of the kept pairs that select an attribute of each group, and mean average precision of its attributes with all "
        f"other pairs at their mean, demo; random: mean of {given.draws} draws"
    )
    report(given, "sparsity", title, rows)


def measure(artifacts: Path, draws: int) -> list[dict]:
    """Return one row per share and choice of the pairs."""
    readout, model = read_readout(artifacts / "model/readout.zarr")
    pairs = open_pair_directions(artifacts / "directions/pair.zarr", readout, model)
    stores = open_shards(list((artifacts / "monitoring/contributions").glob("*.zarr")), CONTRIBUTIONS, model)
    coefficient = torch.from_numpy(join(stores, "coefficient")).float()
    mean = pairs.store.tensor("coefficient_mean")
    sign = torch.stack([pairs.sign(head) for head in range(readout.heads)])
    labels = open_zarr(artifacts / "text/labels.zarr", TEXT, model)
    text = pd.DataFrame(labels.read("embedding"), index=labels.texts())
    truth = pd.read_parquet(artifacts / "monitoring/images.parquet").set_index("image_id").loc[join(stores, "image_id")]
    groups = {name: [word for word in words if truth[word].nunique() == 2] for name, words in GROUPS.items()}
    words = [word for names in groups.values() for word in names]
    attributes = torch.tensor(truth[words].to_numpy(np.float32))
    selected = naming.correlations((coefficient * sign).flatten(1), attributes).argmax(1).numpy()

    def describe(kept: torch.Tensor) -> dict[str, float]:
        """Return the columns of one choice of pairs."""
        image = naming.normalise(ablation.keep_pairs(coefficient, mean, kept, readout)).numpy()
        selects = pd.Series(words).iloc[selected[kept.flatten().numpy()]]
        precision = {word: average_precision_score(truth[word], image @ text.loc[word].to_numpy()) for word in words}
        columns = {f"{name}, selected": float(selects.isin(names).mean()) for name, names in groups.items()}
        columns |= {f"{name}, precision": np.mean([precision[word] for word in names]) for name, names in groups.items()}
        return columns | {"all, precision": np.mean(list(precision.values()))}

    norm = pairs.norm("std_norm").astype(float)
    order, rng = ablation.rank_units(norm), np.random.default_rng(0)
    orders = {"largest": [order], "random": [rng.permutation(order) for _ in range(draws)], "smallest": [order[::-1]]}
    rows = []
    for share in SHARES:
        count = max(1, round(share * norm.size))
        for name, ranked in list(orders.items())[: 1 if share == 1 else None]:
            every = pd.DataFrame([describe(ablation.select_units(one, count, norm.shape)) for one in ranked])
            numbers = {column: f"{value:.3f}" for column, value in every.mean().items()}
            rows.append({"pairs kept": f"{name} {share:.0%}" if share < 1 else "all", "number": count} | numbers)
    return rows


if __name__ == "__main__":
    main()
