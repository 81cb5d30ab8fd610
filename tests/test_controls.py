import numpy as np
import torch

from nadpipe.circuit.controls import random_directions, random_sums


def test_random_directions_have_unit_length_and_the_given_spectrum():
    basis = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
    covariance = basis @ torch.diag(torch.tensor([4.0, 1, 1, 1, 0, 0])) @ basis.T
    direction = random_directions(20000, covariance, seed=1)
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(20000))
    along = direction @ basis
    assert along[:, 4:].abs().max() < 1e-3  # nothing outside the span
    energy = along.square().mean(0)
    assert energy[0] > 2 * energy[1]
    assert (energy[1:4] / energy[1:4].mean() - 1).abs().max() < 0.05
    assert torch.equal(direction, random_directions(20000, covariance, seed=1))
    assert not torch.equal(direction, random_directions(20000, covariance, seed=2))


def test_random_sums_have_as_many_different_candidates_each():
    weight, candidates = np.arange(1.0, 11), np.array([0, 2, 3, 5, 7, 8])
    sums = random_sums(50, candidates, 4, weight, seed=0).toarray()
    assert ((sums > 0).sum(1) == 4).all()
    assert set(np.flatnonzero(sums.sum(0))) == set(candidates)
    assert all(value == weight[column] for (_, column), value in np.ndenumerate(sums) if value)
    assert (random_sums(3, np.array([1, 4]), 40, weight, seed=0).toarray().sum(1) == 7).all()
    assert not np.array_equal(sums, random_sums(50, candidates, 4, weight, seed=1).toarray())
