import numpy as np
import torch
from conftest import activations

from nadpipe.circuit import activity
from nadpipe.circuit.attention import trace
from nadpipe.circuit.readout import coefficients, pair_constants, pair_scores, sum_pairs


def test_end_images_equal_those_of_a_sort():
    value = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    order = value.argsort(dim=0).T
    ends = activity.end_images(value, 3)
    assert ends[:, :3].tolist() == order.flip(1)[:, :3].tolist()
    assert ends[:, 3:].tolist() == order[:, :3].tolist()
    assert activity.end_images(value[:2], 3).shape == (5, 4)  # fewer images than requested


def test_histograms_equal_those_of_numpy():
    value = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    value[:, 3] = 2.5
    counts = activity.histogram(value, value.amin(0), value.amax(0), 8)
    for unit in range(3):
        expected, _ = np.histogram(value[:, unit].numpy(), bins=8)
        np.testing.assert_allclose(counts[unit], expected, atol=1)  # a value on an edge may round to either side
    assert counts.sum(1).tolist() == [200] * 4
    assert counts[3, 0] == 200


def test_firing_of_the_spatial_tokens_and_the_pooled_token_sum_to_the_coefficient(pool):
    views = trace(activations(pool, 2), pool)
    x, attention = views.activation[1], views.attention[1]
    coefficient = coefficients(views, pool.readout)[1]
    head = torch.tensor([0, pool.heads - 1])
    neuron = torch.tensor([pool.neurons - 1, 0])
    maps = activity.firing(attention, x, head, neuron)
    pooled = attention[head, 0] * x[0, neuron]
    torch.testing.assert_close(maps.sum(1) + pooled, coefficient[head, neuron])


def test_maps_of_bytes_are_within_half_a_step():
    maps = torch.randn(3, 6, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 1e-4, 0])[:, None]
    steps, scale = activity.as_bytes(maps)
    assert scale.tolist() == maps.abs().amax(1).tolist()
    assert ((steps.float() / 127 * scale[:, None] - maps).abs() <= scale[:, None] / 254 + 1e-12).all()


def test_maps_of_a_pair_share_the_largest_scale_and_stay_within_a_step():
    maps = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(3)) * torch.tensor([1.0, 0.05, 0])[:, None]
    maps[3] = 0
    steps, scale = activity.share_scale(*activity.as_bytes(maps))
    assert scale.tolist() == maps.abs().amax((1, 2)).tolist()
    assert ((steps.float() / 127 * scale[:, None, None] - maps).abs() <= scale[:, None, None] / 127 + 1e-12).all()
    assert steps[:3, 1].abs().max() < 127 / 5  # a view that fires weakly looks weak


def test_maps_of_the_cosine_sum_to_the_pairs_scores(pool):
    views = trace(activations(pool, 1), pool)
    x, attention = views.activation[0], views.attention[0]
    coefficient = coefficients(views, pool.readout)[0]
    text = torch.nn.functional.normalize(torch.randn(pool.embed, generator=torch.Generator().manual_seed(4)), dim=0)
    head, neuron = torch.tensor([0, pool.heads - 1, 0]), torch.tensor([pool.neurons - 1, 0, 1])
    length = float(sum_pairs(coefficient[None], pool.readout).norm())
    maps = activity.cosine_maps(attention, x, head, neuron, text, length, pool.readout)
    pooled = attention[head, 0] * x[0, neuron] / coefficient[head, neuron]  # share of the pooled token
    constant = pair_constants(pool.readout)[head] @ text / length
    scores = pair_scores(coefficient, text[None], pool.readout)[0, head, neuron]
    torch.testing.assert_close(maps.sum(1), (scores - constant) * (1 - pooled), rtol=1e-4, atol=1e-6)
