"""Stages on tiny random transformers without a class token, with registers, with inner norms, and with CoCa's pooler."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image
from stage_run import Run, noise
from test_tower_families import tiny_config, tiny_model
from test_vit_stages import ALL

from nadpipe.looks.explain import explain
from nadpipe.stages.find_extremes import find_extremes
from nadpipe.stages.map_firing import map_firing
from nadpipe.stages.measure_ledger import measure_ledger
from nadpipe.store.dense import open_dense
from nadpipe.store.kinds.segmentation import REGISTERS
from nadpipe.store.tables import read_parquet

PREFIX = {"siglip": 0, "timm vit, registers": 4, "eva02": 1, "coca": 1}
LAYERS = {"siglip": [3], "timm vit, registers": [2], "eva02": [2], "coca": [3]}


def read(path):
    return xr.open_zarr(path).load()


@pytest.fixture(params=PREFIX)
def family_run(request, tmp_path):
    """Return the name of a family, and a working folder with its tiny model."""
    return request.param, Run(tmp_path, tiny_model(request.param), tiny_config(request.param))


def check_segmentation(run, discovery, shapes, prefix):
    """Segment by every method with windows of another size than the discovery images, and check tables and registers."""
    run.classes()
    run.select(discovery)
    run.decompose(views="sliding", crop=0.7)
    sliding = read(run.folder / "d-features-0.zarr")
    assert sliding["attention"].shape[2] == prefix + 9
    confusion, labels = run.segment(discovery, k=(9,), methods=ALL)
    scores = run.score(confusion)
    assert scores["method"].tolist() == list(ALL)
    assert (scores["pixels"] == sum(height * width for height, width in shapes)).all()
    for number, shape in enumerate(shapes):
        assert Image.open(labels / "nad-k9" / f"{number:06d}.png").size == shape[::-1]
    registers = read_parquet(run.folder / "registers.parquet", REGISTERS)
    attention = registers[registers["kind"] == "token"].sort_values("index")["attention"]
    np.testing.assert_allclose(
        attention, read(run.folder / "c-features-0.zarr")["attention"].values.mean((0, 1))[prefix:], rtol=1e-4
    )


def test_pairs_and_rest_sum_to_the_embedding_and_every_method_segments(family_run):
    family, run = family_run
    prefix = PREFIX[family]
    shapes = [(64, 64), (131, 67)]
    rng = np.random.default_rng(0)
    for number, shape in enumerate(shapes):
        Image.fromarray(rng.integers(0, 3, shape, dtype=np.uint8)).save(run.folder / f"m{number}.png")
    pictures = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    run.write_images(pictures, mask=[f"m{number}.png" for number in range(2)])
    [path] = discovery = run.decompose(name="c")
    contributions, features, readout = read(path), read(run.folder / "c-features-0.zarr"), read(run.pool)
    assert float(contributions["residual"].max()) < 1e-5
    assert float(features.attrs["encode_image_error"]) < 1e-5
    assert (readout.attrs["tokens"], readout.attrs["grid"]) == (prefix + 16, 4)
    assert sorted(set(readout["layer"].values.tolist())) == LAYERS[family]
    tokens = list(range(1 - prefix, 17))  # spatial tokens count from 1 everywhere
    for store in (contributions, read(run.means(path))):
        assert store["token"].values.tolist() == tokens
    assert features["token"].values.tolist() == tokens[prefix:]
    assert features["prefix_activation"].shape[1] == prefix if prefix else "prefix_activation" not in features
    summed = open_dense([path], run.pool)[...].sum((1, 2)) + contributions["rest"].values
    np.testing.assert_allclose(summed, features["embedding"].values, rtol=1e-4, atol=1e-5)
    measure_ledger((run.means(path),), run.folder / "ledger.csv")
    ledger = pd.read_csv(run.folder / "ledger.csv")
    assert ledger["energy"].sum() == pytest.approx(1, abs=1e-5)
    assert ledger["part"].iloc[0] == "pairs"
    assert ("mlp" in set(ledger["part"])) == (family != "coca")

    if family != "coca":  # it segments like SigLIP
        check_segmentation(run, discovery, shapes, prefix)


@pytest.mark.parametrize("family_run", ["timm vit, registers"], indirect=True)
def test_maps_are_the_parts_of_the_coefficient_from_spatial_tokens(family_run, capsys):
    family, run = family_run
    run.write_images(noise(4))
    contributions = run.decompose()
    run.fit("pair", contributions)
    directions, features = run.folder / "pair.zarr", run.folder / "d-features-0.zarr"
    find_extremes(contributions, directions, run.folder / "extremes.zarr", shown=2)
    map_firing(features, *contributions, run.folder / "extremes.zarr", directions, run.pool, run.folder / "firing.zarr")
    firing, stored, sign = read(run.folder / "firing.zarr"), read(features), read(directions)["sign"].values
    views = read(run.folder / "extremes.zarr")["row"].values
    head, neuron = 1, 17
    position = np.ravel_multi_index((head, neuron, 0), views.shape)
    [row] = np.flatnonzero(firing["position"].values == position)
    view = views[head, neuron, 0]
    weight = stored["attention"].values[view, head] * stored["scale"].values[view, 0]
    weight = weight * (stored["gain"].values[view] if "gain" in stored else 1)
    expected = weight[PREFIX[family] :] * stored["activation"].values[view, :, neuron] * sign[head, neuron]
    shown = firing["step"].values[row] / 127 * firing["scale"].values[row]
    np.testing.assert_allclose(shown, expected, atol=np.abs(expected).max() / 120)

    output = run.folder / "e.html"
    explain(run.folder / "image 0.png", ("a fish",), output, run.folder / "none", most=2, device="cpu", **run.model)
    printed = " ".join(capsys.readouterr().out.split())
    cosine, pairs, others = (
        float(printed.split(f"{name} ")[1].split()[0].rstrip(",")) for name in ("cosine", "sum over pairs", "other paths")
    )
    assert cosine == pytest.approx(pairs + others, abs=2e-5)
    assert f"<strong>{LAYERS[family][0]}." in output.read_text()
