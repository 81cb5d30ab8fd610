"""Whether the texts of pairs are true: against 0/1 labels of images that the texts were not made from."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nadpipe import faithfulness, plots
from nadpipe.artifacts import Stamp, open_zarr, read_images, read_parquet, whole, write_csv
from nadpipe.errors import NadpipeError
from nadpipe.inputs import open_shards, read_pool
from nadpipe.progress import track

_SHARES = (0.01, 0.1, 1.0)  # of the pairs, largest first


def measure_naming(
    images: Path,
    contributions: tuple[Path, ...],
    directions: Path,
    assignments: Path,
    correlated: Path,
    attnpool_store: Path,
    output: Path,
    output_plot: Path,
    dataset: str = "monitoring",
    attributes: tuple[str, ...] = (),
) -> None:
    """Write how many pairs' texts have the word of the attribute that the pair's coefficient goes with most.

    Args:
        images: Manifest with 0/1 columns named as words.
        contributions: All shards of the data set's contributions.
        directions: Pair directions, for signs and norms.
        assignments: Texts of the pairs by direction.
        correlated: Texts of the pairs by correlation.
        attnpool_store: Exported attention pool.
        output: CSV table, one row a way of naming and share of the pairs.
        output_plot: PNG.
        dataset: Name of the data set in the table.
        attributes: The columns; all 0/1 columns of the manifest unless given.
    """
    pool, model = read_pool(attnpool_store)
    manifest = read_images(images).set_index("image_id")
    words = list(attributes) or [name for name in manifest.columns if manifest[name].isin([0, 1]).all()]
    missing = [name for name in words if name not in manifest]
    if missing or not words:
        raise NadpipeError(f"{images}: no 0/1 column {missing[0] if missing else 'at all'}; naming needs labels of the images")
    stores = open_shards(contributions, "contributions", model)
    image_id = np.concatenate([store["image_id"][:] for store in stores])
    truth = torch.tensor(manifest.loc[image_id, words].to_numpy(dtype=np.float32))
    store = open_zarr(directions, "pair directions", model)
    selected = np.empty((pool.heads, pool.neurons), int)
    for head in track(range(pool.heads), "comparing pairs with labels", "head"):
        coefficient = torch.from_numpy(np.concatenate([part["coefficient"][:, head] for part in stores])).float()
        along = coefficient * torch.from_numpy(store["sign"][head].astype(np.float32))
        selected[head] = faithfulness.correlations(along, truth).argmax(1)
    norm = store["std_norm"][:].astype(float)
    order = np.argsort(-norm, axis=None, kind="stable")[: int((norm > 0).sum())]
    rows = []
    for rule, text in _texts(assignments, correlated, model, norm.shape).items():
        named = np.array([[word in str(each).split() for word in words] for each in text], float)
        for share in _SHARES:
            some = order[: max(1, round(share * len(order)))]
            found, chance = faithfulness.agreement(selected.ravel()[some], named[some])
            about = {"dataset": dataset, "rule": rule, "share": share, "pairs": len(some), "attributes": len(words)}
            rows.append(about | {"agreement": found, "chance": chance})
    table = pd.DataFrame(rows)
    write_csv(output, "naming", table)
    with whole(output_plot) as partial:
        plots.save(plots.agreement_bars(table), partial)


def _texts(assignments: Path, correlated: Path, model: Stamp, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Each pair's text by each rule."""
    first = read_parquet(assignments, "pair assignments", model, filters=[("rank", "==", 1)])
    tables = {rule: first[first["kind"] == rule] for rule in ("nearest", "sparse")}
    tables["correlated"] = read_parquet(correlated, "pair correlations", model, filters=[("rank", "==", 1)])
    found = {}
    for rule, table in tables.items():
        text = np.full(shape, "", dtype=object)
        text[table["head"], table["neuron"]] = table["text"].astype(object)
        found[rule] = text.ravel()
    return found
