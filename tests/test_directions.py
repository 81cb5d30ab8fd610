import numpy as np
import pytest
import torch
from conftest import activations, make_pool
from reference import dense_contributions, dense_direction

from nadpipe.circuit import attention, directions


def coefficients(pool, views, seed=1):
    x = attention.tokens(activations(pool, views, seed), pool)
    return attention.coefficients(attention.attention(x, pool), x)


def extremes(coefficient, keep, block):
    found = directions.Extremes(keep)
    for part in coefficient.split(block):
        found.add(part)
    return found


def fit_unit(unit, coefficient, pool, top_images, components, block=4):
    mean, top = directions.Mean(), directions.TopByNorm(top_images)
    for part in coefficient.split(block):
        mean.add(part)
    write = directions.unit_writes(unit, pool, slice(None))
    basis, root = directions.orthonormal_basis(write)
    for part in coefficient.split(block):
        top.add(directions.unit_factors(unit, directions.centred(part, mean.value()), pool), root)
    mean_factor = directions.unit_factors(unit, mean.value().float()[None], pool)[0]
    return directions.fit_subspaces(top, basis, root, components), mean_factor, top


@pytest.mark.parametrize(("views", "keep"), [(12, 5), (12, 8), (12, 50), (7, 3)])
def test_a_pairs_direction_is_the_svd_of_its_dense_contributions(pool, views, keep):
    z = activations(pool, views)
    dense, _, _ = dense_contributions(z, pool)
    deviation = extremes(coefficients(pool, views), keep, block=5).farthest()
    for head in range(pool.heads):
        fit = directions.fit_pairs(deviation[:, head], attention.write_vectors(pool, head))
        for neuron in range(pool.neurons):
            right, explained, norm = dense_direction(dense[:, head, neuron], keep, 1)
            assert explained[0] == pytest.approx(1)
            tie = (deviation[:, head, neuron] > 0).sum() * 2 == min(keep, views)  # then w's own sign, the SVD's is chance
            aligned = np.sign(right[0] @ attention.write_vectors(pool, head)[neuron].numpy()) if tie else 1
            np.testing.assert_allclose(fit.direction[neuron], right[0] * aligned, atol=2e-4)
            assert fit.top_norm[neuron] == pytest.approx(norm, rel=1e-3)


def test_signs_follow_the_majority_of_the_kept_images():
    write = torch.tensor([[3.0, 4.0]]).expand(4, 2)
    deviation = torch.tensor([[1.0, -1.0, 2.0, 0.0], [1.0, -2.0, -2.0, 0.0], [-5.0, 1.0, 0.0, 0.0]])
    fit = directions.fit_pairs(deviation, write)
    assert fit.sign.tolist() == [1, -1, 1, 1]  # majority, majority, tie, nothing varies
    torch.testing.assert_close(fit.direction[0], torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(fit.direction[1], torch.tensor([-0.6, -0.8]))


def test_a_pair_that_writes_nothing_has_no_direction():
    fit = directions.fit_pairs(torch.ones(3, 2), torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    assert fit.direction.tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize(("views", "keep"), [(20, 4), (9, 5), (5, 5), (3, 50), (1, 50)])
def test_one_pass_in_blocks_equals_two_passes(views, keep, block):
    generator = torch.Generator().manual_seed(0)
    coefficient = torch.randint(-3, 4, (views, 2, 7), generator=generator).float()  # full of ties
    coefficient[:, 0, 0] = 0.1  # constant, and not a binary fraction
    found = extremes(coefficient, keep, block)
    merged = directions.Extremes(keep)
    for part in coefficient.split(7):  # as from shards, each in blocks of its own
        merged.merge(extremes(part, keep, block))
    assert merged.mean.count == found.mean.count == views
    torch.testing.assert_close(merged.extreme, found.extreme, rtol=0, atol=0)
    torch.testing.assert_close(merged.farthest(), found.farthest(), rtol=0, atol=1e-15)
    torch.testing.assert_close(merged.std(), found.std(), rtol=0, atol=1e-12)
    mean = coefficient.double().mean(0)
    deviation = coefficient.double() - mean
    deviation[:, 0, 0] = 0
    expected = deviation.abs().sort(dim=0, descending=True).values[:keep]
    torch.testing.assert_close(found.farthest().abs(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.std(), deviation.square().mean(0).sqrt(), rtol=1e-9, atol=1e-7)
    assert found.constant()[0, 0]
    assert found.std()[0, 0] == 0


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
    farthest = extremes(coefficient, keep, block).farthest()
    signs = torch.stack([directions.fit_pairs(farthest[:, head], torch.ones(11, 2)).sign for head in range(3)])
    assert torch.equal(signs, expected)


def test_coefficients_that_differ_by_their_rounding_do_not_vary():
    coefficient = torch.full((6, 1, 2), 0.3)
    coefficient[0, 0, 0] = torch.nextafter(coefficient[0, 0, 0], torch.tensor(1.0))
    coefficient[0, 0, 1] = 0.30001
    found = extremes(coefficient, 3, 2)
    assert found.constant().tolist() == [[True, False]]
    assert found.farthest()[:, 0, 0].tolist() == [0, 0, 0]
    assert found.std()[0, 1] > 0


@pytest.mark.parametrize("unit", ["neuron", "head"])
@pytest.mark.parametrize(("views", "keep"), [(14, 6), (14, 50)])
def test_neurons_and_heads_equal_the_svd_of_their_dense_contributions(pool, unit, views, keep):
    dense, _, _ = dense_contributions(activations(pool, views), pool)
    contribution = dense.sum(1 if unit == "neuron" else 2)
    fit, mean_factor, top = fit_unit(unit, coefficients(pool, views), pool, keep, components=2)
    write = directions.unit_writes(unit, pool, slice(None))
    whole = torch.einsum("ur,ure->ue", mean_factor, write) + directions.unit_constants(unit, pool)
    np.testing.assert_allclose(whole, contribution.mean(0), rtol=1e-3, atol=1e-4)
    for at in range(contribution.shape[1]):
        right, explained, norm = dense_direction(contribution[:, at], keep, 2)
        np.testing.assert_allclose(fit.explained[at], explained, atol=1e-4)
        assert fit.top_norm[at] == pytest.approx(norm, rel=1e-3)
        spread = contribution[:, at] - contribution[:, at].mean(0)
        assert top.energy.value()[at] == pytest.approx(np.square(spread).sum(1).mean(), rel=1e-3)
        for component in range(2):
            gap = explained[component] - np.append(explained, 0)[component + 1] if component < len(explained) - 1 else 1
            if explained[component] > 1e-6 and gap > 1e-3 and (component == 0 or explained[0] - explained[1] > 1e-3):
                assert abs(fit.direction[at, component].numpy() @ right[component]) == pytest.approx(1, abs=1e-3)
                projection = spread @ fit.direction[at, component].numpy()
                kept = projection[np.argsort(-np.linalg.norm(spread, axis=1), kind="stable")[:keep]]
                assert (kept > 0).sum() >= (kept < 0).sum()


@pytest.mark.parametrize("unit", ["neuron", "head"])
def test_one_image_or_equal_images_leave_no_direction(unit):
    _, pool = make_pool(4, 64, 16, 3)
    for coefficient in (coefficients(pool, 1), coefficients(pool, 1).expand(6, -1, -1)):
        fit, _, _ = fit_unit(unit, coefficient, pool, 50, components=3)
        assert (fit.direction == 0).all()
        assert fit.explained[:, 0].isnan().all()
        assert (fit.top_norm == 0).all()


def test_components_beyond_the_rank_are_zero():
    _, pool = make_pool(2, 8, 12, 2)
    fit, _, _ = fit_unit("neuron", coefficients(pool, 9), pool, 9, components=5)  # rank 2
    assert fit.direction.shape == (8, 5, 12)
    assert (fit.direction[:, 2:] == 0).all()
    torch.testing.assert_close(fit.explained.sum(1), torch.ones(8))
