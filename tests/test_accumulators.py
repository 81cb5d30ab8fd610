import dataclasses
import inspect

import pytest
import torch

from nadpipe.circuit import accumulators, naming
from nadpipe.circuit.accumulators import Extremes, Mean, TopByNorm, TopPairs, subtract_mean
from nadpipe.circuit.directions import fit_pairs

VIEWS, HEADS, NEURONS, RANK = 23, 2, 7, 3
KEEP = 4


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------- the shared interface


COEFFICIENT = random(VIEWS, HEADS, NEURONS)
FACTOR, ROOT = random(VIEWS, NEURONS, RANK), random(NEURONS, RANK, RANK, seed=1)
DIRECTION = naming.normalise(random(VIEWS, NEURONS, 5, seed=2))  # of the pairs of as many heads
TEXT = naming.normalise(random(3, 5, seed=3))


def add_heads(top, rows):
    for head in rows.tolist():
        top.add(head, DIRECTION[head], TEXT)


ACCUMULATORS = {  # each with a function that adds some rows of its input
    Mean: (Mean, lambda mean, rows: mean.add(COEFFICIENT[rows])),
    Extremes: (lambda: Extremes(KEEP), lambda extremes, rows: extremes.add(COEFFICIENT[rows])),
    TopByNorm: (lambda: TopByNorm(KEEP), lambda top, rows: top.add(FACTOR[rows], ROOT)),
    TopPairs: (lambda: TopPairs(KEEP), add_heads),
}


def values(result):
    """Return all numbers of a result by name."""
    if dataclasses.is_dataclass(result):
        result = vars(result)
    if isinstance(result, dict):
        return {f"{key}.{name}": value for key, item in result.items() for name, value in values(item).items()}
    return {"": torch.as_tensor(result)}


def accumulate(kind, blocks):
    make, add = ACCUMULATORS[kind]
    accumulator = make()
    for block in blocks:
        add(accumulator, block)
    return accumulator


def test_every_accumulator_is_tested():
    interface = ("add", "merge", "result")
    classes = [cls for _, cls in inspect.getmembers(accumulators, inspect.isclass)]
    assert {cls for cls in classes if all(hasattr(cls, name) for name in interface)} == set(ACCUMULATORS)


@pytest.mark.parametrize("kind", ACCUMULATORS, ids=lambda kind: kind.__name__)
def test_blocks_and_merged_shards_give_the_result_of_all_views_at_once(kind):
    rows = torch.arange(VIEWS)
    expected = values(accumulate(kind, [rows]).result())
    results = [accumulate(kind, rows.split(size)).result() for size in (1, 3, 10)]
    for sizes in ([10, 1, 12], [2, 21], [3] * 7 + [2]):
        shards = [accumulate(kind, shard.split(5)) for shard in rows.split(sizes)]  # as from shards, each in its own blocks
        merged = ACCUMULATORS[kind][0]()
        for shard in shards:
            merged.merge(shard)
        results.append(merged.result())
        for shard in shards[1:]:
            shards[0].merge(shard)
        results.append(shards[0].result())
    for result in map(values, results):
        assert result.keys() == expected.keys()
        for name, value in result.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-12 if value.dtype == torch.double else 1e-6, atol=1e-12)


@pytest.mark.parametrize("kind", ACCUMULATORS, ids=lambda kind: kind.__name__)
def test_a_missing_view_changes_the_result(kind):
    """The missing view has the largest value of the first unit, so even statistics of few views depend on it."""
    rows = torch.arange(VIEWS)
    largest = {TopByNorm: torch.einsum("vr,kr->vk", FACTOR[:, 0], ROOT[0]).norm(dim=1), TopPairs: (DIRECTION @ TEXT[0]).amax(1)}
    without = rows[rows != largest.get(kind, COEFFICIENT[:, 0, 0]).argmax()]
    complete, incomplete = (values(accumulate(kind, [block]).result()) for block in (rows, without))
    assert any(not torch.equal(complete[name], incomplete[name]) for name in complete)


# -------------------------------------------------------------------------------------------------------- mean, extremes


def test_a_mean_counts_views_not_rows():
    mean = Mean()
    mean.add(torch.tensor([[6.0, 8.0]]), views=4)  # a sum over four views
    mean.add(torch.tensor([[2.0, 2.0]]))
    mean.merge(Mean())
    assert mean.count == 5
    assert mean.result().tolist() == [8 / 5, 2]


def test_deviations_within_rounding_are_zero():
    block = torch.tensor([0.1, 0.1, 0.2])
    deviation = subtract_mean(block, torch.tensor(0.1, dtype=torch.double))
    assert deviation[:2].tolist() == [0, 0]
    assert deviation.dtype == torch.float32
    assert deviation[2] == pytest.approx(0.1)


def extremes(coefficient, keep, block):
    accumulator = Extremes(keep)
    for values_of_block in coefficient.split(block):
        accumulator.add(values_of_block)
    return accumulator


@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize(("views", "keep"), [(20, 4), (9, 5), (5, 5), (3, 50), (1, 50)])
def test_one_pass_in_blocks_equals_two_passes(views, keep, block):
    generator = torch.Generator().manual_seed(0)
    coefficient = torch.randint(-3, 4, (views, 2, 7), generator=generator).float()  # full of ties
    coefficient[:, 0, 0] = 0.1  # constant, and not a binary fraction
    one_pass = extremes(coefficient, keep, block)
    merged = Extremes(keep)
    for shard in coefficient.split(7):  # as from shards, each in blocks of its own
        merged.merge(extremes(shard, keep, block))
    torch.testing.assert_close(merged.extreme, one_pass.extreme, rtol=0, atol=0)
    one_pass, merged = one_pass.result(), merged.result()
    assert (merged.views, merged.keep) == (one_pass.views, one_pass.keep) == (views, keep)
    torch.testing.assert_close(merged.farthest, one_pass.farthest, rtol=0, atol=1e-15)
    torch.testing.assert_close(merged.std, one_pass.std, rtol=0, atol=1e-12)
    mean = coefficient.double().mean(0)
    deviation = coefficient.double() - mean
    deviation[:, 0, 0] = 0
    expected = deviation.abs().sort(dim=0, descending=True).values[:keep]
    torch.testing.assert_close(one_pass.mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one_pass.farthest.abs(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(one_pass.std, deviation.square().mean(0).sqrt(), rtol=1e-9, atol=1e-7)
    assert (one_pass.farthest[:, 0, 0] == 0).all()
    assert one_pass.std[0, 0] == 0


@pytest.mark.parametrize("block", [1, 7, 100])
@pytest.mark.parametrize(("views", "keep"), [(101, 50), (60, 50), (49, 50), (300, 50), (9, 4)])
def test_signs_of_one_pass_are_those_of_two(views, keep, block):
    generator = torch.Generator().manual_seed(1)
    coefficient = torch.randn(views, 3, 11, generator=generator).exp()  # skewed, no ties
    coefficient[: views // 2] *= -0.7
    coefficient[:, 1, 1] = coefficient[:, 1, 1].round(decimals=1)  # ties
    deviation = coefficient.double() - coefficient.double().mean(0)
    kept = deviation.gather(0, deviation.abs().argsort(dim=0, descending=True, stable=True)[:keep])
    expected = torch.where((kept > 0).sum(0) >= (kept < 0).sum(0), 1, -1)
    assert set(expected.flatten().tolist()) == {1, -1}
    farthest = extremes(coefficient, keep, block).result().farthest
    signs = torch.stack([fit_pairs(farthest[:, head], torch.ones(11, 2)).sign for head in range(3)])
    assert torch.equal(signs, expected)


def test_coefficients_that_differ_by_their_rounding_do_not_vary():
    coefficient = torch.full((6, 1, 2), 0.3)
    coefficient[0, 0, 0] = torch.nextafter(coefficient[0, 0, 0], torch.tensor(1.0))
    coefficient[0, 0, 1] = 0.30001
    moments = extremes(coefficient, 3, 2).result()
    assert (moments.std > 0).tolist() == [[False, True]]
    assert moments.farthest[:, 0, 0].tolist() == [0, 0, 0]
    assert moments.farthest[0, 0, 1] > 0


# ------------------------------------------------------------------------------------------------------ units and pairs


def test_top_factors_are_those_of_a_sort_by_norm():
    top = accumulate(TopByNorm, torch.arange(VIEWS).split(6)).result()
    norm = torch.einsum("vur,ukr->vuk", FACTOR, ROOT).norm(dim=2)
    for unit in range(NEURONS):
        order = norm[:, unit].argsort(descending=True)[:KEEP]
        torch.testing.assert_close(top.factor[:, unit], FACTOR[order, unit], rtol=0, atol=0)
        torch.testing.assert_close(top.norm[:, unit], norm[order, unit])
    torch.testing.assert_close(top.energy.float(), norm.square().mean(0))
    selected = top.of(slice(2, 4))
    assert torch.equal(selected.factor, top.factor[:, 2:4])
    assert torch.equal(selected.norm, top.norm[:, 2:4])
    assert torch.equal(selected.energy, top.energy[2:4])


@pytest.mark.parametrize("k", [1, 5, 12])
def test_top_pairs_equal_a_sort_of_all_pairs(k):
    heads, neurons = 3, 4
    direction, text = naming.normalise(random(heads, neurons, 6, seed=9)), naming.normalise(random(2, 6, seed=10))
    top = TopPairs(k)
    for head in range(heads):
        top.add(head, direction[head], text)
    selection = top.result()
    for row in range(2):
        cosine = direction.flatten(0, 1) @ text[row]
        order = cosine.argsort(descending=True, stable=True)[:k]
        assert (selection.head[row] * neurons + selection.neuron[row]).tolist() == order.tolist()
        torch.testing.assert_close(selection.cosine[row], cosine[order])


def test_equal_cosines_select_the_lower_pair():
    top, other = TopPairs(3), TopPairs(3)
    for head, accumulator in enumerate((top, other)):
        accumulator.add(head, torch.ones(2, 2), torch.ones(1, 2))
    top.merge(other)
    pairs = zip(top.result().head[0].tolist(), top.result().neuron[0].tolist(), strict=True)
    assert list(pairs) == [(0, 0), (0, 1), (1, 0)]
