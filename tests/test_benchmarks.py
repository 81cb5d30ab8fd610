"""The published formulation that benchmarks compare with is right, and the page shows what they wrote."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import activations
from reference import dense_contributions, dense_direction

from nadpipe.circuit import attention, naming, segmentation

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.fixture(scope="module")
def published():
    spec = importlib.util.spec_from_file_location("published", ROOT / "benchmarks" / "published.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_published_dense_contributions_are_the_formula(published, pool):
    z = activations(pool, 3)
    x = attention.tokens(z, pool)
    pair, _, _ = dense_contributions(z, pool)
    np.testing.assert_allclose(published.dense_contributions(x, attention.attention(x, pool), pool), pair, atol=1e-4)


def test_the_published_direction_is_the_first_singular_vector(published):
    contribution = torch.randn(30, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    [expected], _, _ = dense_direction(contribution.numpy(), 11, 1)
    np.testing.assert_allclose(published.pair_direction(contribution, 11), expected, atol=1e-9)


def test_the_published_gather_is_the_sparse_product(published, pool):
    z = activations(pool, 1)
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(2, pool.heads * pool.neurons, generator=generator).argsort(dim=1)[:, :5]
    chosen = naming.Selection(torch.zeros(order.shape), order // pool.neurons, order % pool.neurons)
    text = naming.unit(torch.randn(2, len(pool.c_bias), generator=generator))
    value_mean = torch.zeros(pool.heads, pool.tokens, pool.neurons // pool.heads)
    tokens = segmentation.Tokens(z, segmentation.Query(pool, text, value_mean, sink=None))
    gathered = published.gathered_logits(z[0], tokens.similarity[0], chosen.head, chosen.neuron)
    pairs = segmentation.selected_pairs(chosen, 5, pool.heads, pool.neurons)
    expected = segmentation.nad(tokens, pairs)[0] * pairs.k / chosen.head.shape[1]  # a pool may have fewer pairs
    torch.testing.assert_close(gathered, expected, rtol=1e-4, atol=1e-6)


def test_the_page_shows_what_the_benchmarks_wrote():
    made = subprocess.run([sys.executable, "docs/make_benchmarks_page.py"], cwd=ROOT, capture_output=True, check=True).stdout
    assert made.decode() == (ROOT / "docs" / "benchmarks.md").read_text()


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_result_says_where_it_comes_from(path):
    content = json.loads(path.read_text())
    assert (ROOT / content["command"].split()[1]).is_file()
    assert content["date"]
    assert content["machine"]["processor"]
    assert content["rows"]


def test_every_benchmark_has_a_result():
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")} - {"common.py", "published.py"}
    assert scripts == {Path(json.loads(path.read_text())["command"].split()[1]).name for path in RESULTS}
