"""docs/published.yaml switches a config to the choices of the paper's published code, which docs/published.md explains."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from nadpipe.circuit.methods import METHODS
from nadpipe.config import check
from nadpipe.data.class_tables import read_classes
from nadpipe.data.classes import class_texts
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import FEATURES
from nadpipe.store.kinds.segmentation import REGISTERS
from nadpipe.store.kinds.texts import TEXT
from nadpipe.store.kinds.units import SELECTION
from nadpipe.store.pairs import open_pair_directions
from nadpipe.store.pool import read_pool
from nadpipe.store.tables import read_parquet

ROOT = Path(__file__).parents[1]
PRESET = yaml.safe_load((ROOT / "docs" / "published.yaml").read_text())
PAGE = (ROOT / "docs" / "published.md").read_text()


def test_the_preset_is_valid_over_the_shipped_config_and_every_key_is_explained():
    config = check(yaml.safe_load((ROOT / "config.yaml").read_text()))
    for section, keys in PRESET.items():
        assert set(keys) <= set(config[section])
        config[section] |= keys
    check(config)
    rows = set(re.findall(r"^\| `([\w.]+)`", PAGE, re.MULTILINE))
    assert rows >= {f"{section}.{key}" for section, keys in PRESET.items() for key in keys}
    assert {"self_self", "values_only"} <= set(PRESET["segmentation"]["methods"]) <= set(METHODS)


@pytest.fixture(scope="module")
def published(checkout):
    """Return the results of the small demo with the preset."""
    checkout.run(
        *("results/segmentation.csv", "results/registers.parquet", "results/shift.csv"),
        "--configfile",
        "config.yaml",
        "docs/published.yaml",
    )
    return checkout.folder / "results"


@pytest.mark.slow
def test_the_preset_segments_as_the_published_code_does(published):
    artifacts = published / "artifacts"
    pool, model = read_pool(artifacts / "model" / "readout.zarr")
    readout = pool.readout
    write = torch.einsum("hed,hdn->hne", readout.output, readout.value)
    pairs = open_pair_directions(artifacts / "directions" / "pair.zarr", readout, model)
    sign = torch.stack([pairs.sign(head) for head in range(pool.heads)])
    direction = (F.normalize(write, dim=2) * sign[..., None]).flatten(0, 1)
    text = open_zarr(artifacts / "text" / "segmentation.zarr", TEXT, model).tensor("embedding")
    text = F.normalize(text - text.mean(0), dim=1)
    [k] = pd.read_csv(published / "segmentation.csv")["k"].dropna().unique().astype(int)
    chosen = (text @ direction.T).topk(k, dim=1).indices
    owner, _ = class_texts(read_classes(artifacts / "segmentation" / "classes.parquet")[1], True)
    store = open_zarr(artifacts / "segmentation" / "features" / "0.zarr", FEATURES, model)
    views = {name: store.read(name) for name in ("image_id", "crop_top", "crop_left", "crop_size")}
    alike = []
    for image in np.unique(views["image_id"])[:3]:
        rows = np.flatnonzero(views["image_id"] == image)
        size = (int(store.read("resized_height")[rows[0]]), int(store.read("resized_width")[rows[0]]))
        summed, count = torch.zeros(len(text), *size), torch.zeros(size)
        for row in rows:
            logits = crop_logits(store.tensor("activation", int(row)).float(), pool, text, chosen)
            top, left, side = (int(views[name][row]) for name in ("crop_top", "crop_left", "crop_size"))
            summed[:, top : top + side, left : left + side] += F.interpolate(logits[None], size=(side, side), mode="bilinear")[
                0
            ]
            count[top : top + side, left : left + side] += 1
        [path] = (published / "segmentation" / "segmentation" / "labels" / "0").glob(f"nad-k*/{image:06d}.png")
        labels = np.asarray(Image.open(path))
        logits = F.interpolate((summed / count)[None], size=labels.shape, mode="bilinear")[0]
        best = torch.tensor(owner)[(40 * logits).softmax(0).argmax(0)]
        alike.append((best.numpy() == labels).mean())
    assert min(alike) > 0.9999


def crop_logits(z, pool, text, chosen):
    """Return the logits (text, row, column) of one crop, in the order of the published code."""
    readout, side = pool.readout, pool.grid
    x = torch.cat([z.mean(0, keepdim=True), z]) + pool.positional_embedding
    query = torch.einsum("n,hdn->hd", x[0], pool.query) + pool.query_bias
    key = torch.einsum("tn,hdn->htd", x, pool.key) + pool.key_bias[:, None]
    value = torch.einsum("tn,hdn->htd", x, readout.value) + readout.value_bias[:, None]
    share = (torch.einsum("hd,htd->ht", query, key) / query.shape[1] ** 0.5).softmax(1)
    written = torch.einsum("ht,htd,hed->the", share, value, readout.output) + readout.output_bias / (pool.heads * pool.tokens)
    vectors = replace_last(written[1:], side)
    similarity = torch.einsum("the,pe->pth", F.normalize(vectors, dim=2), text)
    z = replace_last(z, side)
    head, neuron = chosen // pool.neurons, chosen % pool.neurons
    logits = [(z[:, neuron[p]] * similarity[p][:, head[p]]).mean(1) for p in range(len(text))]
    return torch.stack(logits).unflatten(1, (side, side))


def replace_last(tokens, side):
    """Replace the last token by the mean of its west, north and north-west neighbours."""
    replaced = tokens.clone()
    replaced[-1] = (tokens[-2] + tokens[-1 - side] + tokens[-2 - side]) / 3
    return replaced


@pytest.mark.slow
def test_the_preset_switches_every_table(published):
    scores = pd.read_csv(published / "segmentation.csv")
    assert scores["method"].tolist() == PRESET["segmentation"]["methods"]
    tokens = read_pool(published / "artifacts" / "model" / "readout.zarr")[0].tokens
    assert set(scores["sink"]) == {tokens - 2}
    registers = read_parquet(published / "registers.parquet", REGISTERS)
    neurons = registers[registers["kind"] == "neuron"].sort_values("rank")
    assert neurons["attention_change"].is_monotonic_decreasing
    assert not neurons["attention_drop"].is_monotonic_decreasing
    assert set(pd.read_csv(published / "shift.csv")["k"]) == {5}
    for name in ("segmentation", "concepts"):
        selection = open_zarr(published / "artifacts" / "selection" / f"{name}.zarr", SELECTION)
        assert selection.attributes["select_by"] == "direction"
    store = open_zarr(published / "artifacts" / "segmentation" / "features" / "0.zarr", FEATURES)
    images = pd.read_parquet(published / "artifacts" / "segmentation" / "images.parquet").set_index("image_id")
    for image, *resized in zip(*(store.read(name) for name in ("image_id", "resized_height", "resized_width")), strict=True):
        size = images.loc[image, ["height", "width"]].to_numpy(int)
        assert resized == (size * (min(resized) / size.min()) + 0.5).astype(int).tolist()
