import numpy as np
import pytest
import torch
from conftest import activations, make_pool
from reference import dense_contributions, dense_direction

from nadpipe.circuit import directions
from nadpipe.circuit.accumulators import Extremes, Mean, TopByNorm, subtract_mean
from nadpipe.circuit.attention import trace
from nadpipe.circuit.readout import coefficients, write_vectors
from nadpipe.circuit.units import SUBSPACE_UNITS
from nadpipe.errors import NadpipeError
from nadpipe.store.arrays import create_zarr
from nadpipe.store.kinds.units import DIRECTIONS
from nadpipe.store.pairs import open_pair_directions
from nadpipe.store.pool import read_pool, write_pool
from nadpipe.store.stamp import Stamp


def pool_coefficients(pool, views, seed=1):
    return coefficients(trace(activations(pool, views, seed), pool), pool.readout)


def fit_unit(unit, coefficient, readout, top_images, components, block=4):
    """Return the fit, the mean factor and the top factors of one kind of unit."""
    kind = SUBSPACE_UNITS[unit]
    mean, top = Mean(), TopByNorm(top_images)
    for values in coefficient.split(block):
        mean.add(values)
    basis, root = directions.orthonormal_basis(kind.writes(readout, slice(None)))
    for values in coefficient.split(block):
        top.add(kind.factors(subtract_mean(values, mean.result()), readout), root)
    mean_factor = kind.factors(mean.result().float()[None], readout)[0]
    return directions.fit_subspaces(top.result(), basis, root, components), mean_factor, top.result()


@pytest.mark.parametrize(("views", "keep"), [(12, 5), (12, 8), (12, 50), (7, 3)])
def test_a_pairs_direction_is_the_svd_of_its_dense_contributions(pool, views, keep):
    z = activations(pool, views)
    dense, _, _ = dense_contributions(z, pool)
    extremes = Extremes(keep)
    for values in pool_coefficients(pool, views).split(5):
        extremes.add(values)
    deviation = extremes.result().farthest
    for head in range(pool.heads):
        write = write_vectors(pool.readout, head)
        fit = directions.fit_pairs(deviation[:, head], write)
        direction = directions.pair_directions(pool.readout, head, fit.sign)
        torch.testing.assert_close(fit.write_norm, write.norm(dim=1))
        fits = [dense_direction(dense[:, head, neuron], keep, 1) for neuron in range(pool.neurons)]
        right, explained, norm = (np.array(values) for values in zip(*fits, strict=True))
        np.testing.assert_allclose(explained, 1)
        tie = (deviation[:, head] > 0).sum(0).numpy() * 2 == min(keep, views)  # then w's own sign; the SVD's is random
        own_sign = np.sign((right[:, 0] * write.numpy()).sum(1))
        np.testing.assert_allclose(direction, right[:, 0] * np.where(tie, own_sign, 1)[:, None], atol=2e-4)
        np.testing.assert_allclose(fit.top_norm, norm, rtol=1e-3)


def test_signs_follow_the_majority_of_the_kept_images():
    write = torch.tensor([[3.0, 4.0]]).expand(4, 2)
    deviation = torch.tensor([[1.0, -1.0, 2.0, 0.0], [1.0, -2.0, -2.0, 0.0], [-5.0, 1.0, 0.0, 0.0]])
    fit = directions.fit_pairs(deviation, write)
    assert fit.sign.tolist() == [1, -1, 1, 1]  # majority, majority, tie, nothing varies
    torch.testing.assert_close(fit.write_norm, torch.full((4,), 5.0))
    torch.testing.assert_close(fit.top_norm, torch.tensor([7.0, 4.0, 4.0, 0.0]) * 5 / 3)


def test_directions_read_from_a_store_are_signed_normalised_write_vectors(tmp_path, pool):
    """The store holds signs and norms; directions are derived from the readout."""
    model = Stamp(model="a" * 64, architecture="RN50", code="123")
    write_pool(tmp_path / "readout.zarr", pool, model, {})
    sign = torch.randint(0, 2, (pool.heads, pool.neurons), generator=torch.Generator().manual_seed(0)) * 2 - 1
    sizes = {"head": pool.heads, "neuron": pool.neurons}
    kind = DIRECTIONS["pair"]
    assert "direction" not in kind.arrays
    with create_zarr(tmp_path / "pair.zarr", kind, model, sizes) as store:
        for offset, name in enumerate(kind.arrays):
            store.write(name, sign if name == "sign" else np.full(sign.shape, offset, "f4"))
    stored_pool, _ = read_pool(tmp_path / "readout.zarr")
    stored = open_pair_directions(tmp_path / "pair.zarr", stored_pool.readout, model)
    for head in range(pool.heads):
        value, output = pool.readout.value[head].double().numpy(), pool.readout.output[head].double().numpy()
        write = (output @ value).T
        expected = sign[head].numpy()[:, None] * write / np.linalg.norm(write, axis=1, keepdims=True)
        np.testing.assert_allclose(stored.direction(head), expected, atol=1e-5)
        assert torch.equal(stored.sign(head), sign[head])
    for offset, name in enumerate(kind.arrays):
        if name != "sign":
            assert (stored.norm(name) == offset).all()


def test_a_pair_that_does_not_write_has_no_direction():
    _, pool = make_pool(2, 8, 12, 2)
    pool.readout.value[1, :, 3] = 0
    direction = directions.pair_directions(pool.readout, 1, torch.full((8,), -1))
    assert (direction[3] == 0).all()
    others = torch.arange(8) != 3
    torch.testing.assert_close(direction[others].norm(dim=1), torch.ones(7))


@pytest.mark.parametrize(("images", "top"), [(600, 30), (1000, 50), (5000, 50), (300, 15), (60, 10), (7, 7)])
def test_top_images_are_a_share_of_at_least_10_and_at_most_50_images(images, top):
    assert directions.count_top_images(images, 0.05) == top


def test_a_number_of_top_images_replaces_the_share_and_is_at_most_the_number_of_images():
    assert directions.count_top_images(60, 0.05, 60) == 60
    with pytest.raises(NadpipeError, match=r"^directions\.top_images: 200 exceeds the 60 discovery images; lower it, .*null"):
        directions.count_top_images(60, 0.05, 200)


@pytest.mark.parametrize(("images", "top", "enough"), [(50, 10, 50), (49, 10, 50), (30, 10, 50), (60, 50, 250), (7, 7, 35)])
def test_more_than_a_fifth_of_the_images_gives_a_warning(images, top, enough):
    warning = directions.warn_of_top_images(images, top)
    if images >= enough:
        assert warning is None
    else:
        assert f"{top} of {images} discovery images are more than a fifth" in warning
        assert f"use at least {enough} discovery images" in warning


def test_few_top_images_follow_the_extremes_and_most_images_follow_the_median():
    """The coefficients are skewed to the right, as those of pairs are: the farthest are above the mean, most are below it."""
    extremes = Extremes(60)
    extremes.add(torch.from_numpy(np.random.default_rng(0).exponential(size=(60, 1, 500))))
    deviation = extremes.result().farthest[:, 0]
    few, most = (directions.fit_pairs(deviation[:top], torch.ones(500, 1)).sign for top in (3, 50))
    assert (few == 1).float().mean() > 0.95
    assert (most == -1).float().mean() > 0.95


@pytest.mark.parametrize("unit", SUBSPACE_UNITS)
@pytest.mark.parametrize(("views", "keep"), [(14, 6), (14, 50)])
def test_neurons_and_heads_equal_the_svd_of_their_dense_contributions(pool, unit, views, keep):
    dense, _, _ = dense_contributions(activations(pool, views), pool)
    contribution = dense.sum(1 if unit == "neuron" else 2)
    kind, readout = SUBSPACE_UNITS[unit], pool.readout
    fit, mean_factor, top = fit_unit(unit, pool_coefficients(pool, views), readout, keep, components=2)
    write = kind.writes(readout, slice(None))
    mean = torch.einsum("ur,ure->ue", mean_factor, write) + kind.constants(readout)
    np.testing.assert_allclose(mean, contribution.mean(0), rtol=1e-3, atol=1e-4)
    for row in range(contribution.shape[1]):
        right, explained, norm = dense_direction(contribution[:, row], keep, 2)
        np.testing.assert_allclose(fit.explained[row], explained, atol=1e-4)
        assert fit.top_norm[row] == pytest.approx(norm, rel=1e-3)
        deviation = contribution[:, row] - contribution[:, row].mean(0)
        assert top.energy[row] == pytest.approx(np.square(deviation).sum(1).mean(), rel=1e-3)
        for component in range(2):
            gap = explained[component] - np.append(explained, 0)[component + 1] if component < len(explained) - 1 else 1
            if explained[component] > 1e-6 and gap > 1e-3 and (component == 0 or explained[0] - explained[1] > 1e-3):
                assert abs(fit.direction[row, component].numpy() @ right[component]) == pytest.approx(1, abs=1e-3)
                projection = deviation @ fit.direction[row, component].numpy()
                kept = projection[np.argsort(-np.linalg.norm(deviation, axis=1), kind="stable")[:keep]]
                assert (kept > 0).sum() >= (kept < 0).sum()


@pytest.mark.parametrize("unit", SUBSPACE_UNITS)
def test_one_image_or_equal_images_have_no_direction(unit):
    _, pool = make_pool(4, 64, 16, 3)
    for coefficient in (pool_coefficients(pool, 1), pool_coefficients(pool, 1).expand(6, -1, -1)):
        fit, _, _ = fit_unit(unit, coefficient, pool.readout, 50, components=3)
        assert (fit.direction == 0).all()
        assert fit.explained[:, 0].isnan().all()
        assert (fit.top_norm == 0).all()


def test_components_beyond_the_rank_are_zero():
    _, pool = make_pool(2, 8, 12, 2)
    fit, _, _ = fit_unit("neuron", pool_coefficients(pool, 9), pool.readout, 9, components=5)  # rank 2
    assert fit.direction.shape == (8, 5, 12)
    assert (fit.direction[:, 2:] == 0).all()
    torch.testing.assert_close(fit.explained.sum(1), torch.ones(8))
