import numpy as np
import pytest
import torch
from conftest import activations
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score

from nadpipe.circuit import ablation
from nadpipe.circuit.attention import trace
from nadpipe.circuit.naming import normalise
from nadpipe.circuit.readout import coefficients, sum_pairs, write_vectors


@pytest.fixture
def readout(pool):
    return pool.readout


@pytest.fixture
def coefficient(pool):
    return coefficients(trace(activations(pool, 7), pool), pool.readout)


def test_keeping_all_pairs_gives_the_embedding_and_keeping_none_its_mean(readout, coefficient):
    mean = coefficient.mean(0)
    everything = torch.ones(mean.shape, dtype=torch.bool)
    embedding = sum_pairs(coefficient, readout)
    torch.testing.assert_close(ablation.keep_pairs(coefficient, mean, everything, readout), embedding)
    none = ablation.keep_pairs(coefficient, mean, ~everything, readout)
    torch.testing.assert_close(none, embedding.mean(0).expand_as(none), rtol=1e-4, atol=1e-5)


def test_disjoint_sets_of_pairs_are_additive(readout, coefficient):
    mean = coefficient.mean(0)
    first = torch.rand(mean.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    base = ablation.keep_pairs(coefficient, mean, torch.zeros_like(first), readout)
    deviations = [ablation.keep_pairs(coefficient, mean, kept, readout) - base for kept in (first, ~first)]
    torch.testing.assert_close(base + sum(deviations), sum_pairs(coefficient, readout), rtol=1e-4, atol=1e-5)


def test_the_first_pairs_are_the_largest():
    norm = np.array([[1.0, 3.0, 0.0], [2.0, 3.0, 0.5]])
    order = ablation.rank_units(norm)
    assert order.tolist() == [1, 4, 3, 0, 5, 2]
    assert ablation.select_units(order, 3, norm.shape).tolist() == [[False, True, False], [True, True, False]]
    assert ablation.select_units(order[::-1], 2, norm.shape).tolist() == [[False, False, True], [False, False, True]]
    assert ablation.select_units(ablation.rank_units(norm[1]), 2, (3,)).tolist() == [True, True, False]


def rebuild(coefficient, readout, directions):
    """Return the mean plus what each neuron writes along directions (neuron, component, embed)."""
    mean = coefficient.mean(0)
    coordinate = sum(
        ablation.coordinates(coefficient[:, head] - mean[head], write_vectors(readout, head), directions)
        for head in range(readout.heads)
    )
    return sum_pairs(mean[None], readout) + ablation.decode(coordinate, directions)


def test_neurons_are_rebuilt_on_a_complete_basis_and_projected_on_a_smaller_one(readout, coefficient):
    write = torch.stack([write_vectors(readout, head) for head in range(readout.heads)], dim=1)
    basis = torch.linalg.qr(write.transpose(1, 2))[0].transpose(1, 2).contiguous()
    embedding = sum_pairs(coefficient, readout)
    rebuilt = rebuild(coefficient, readout, basis)
    torch.testing.assert_close(rebuilt[-1], embedding, rtol=1e-3, atol=1e-4)
    centred = coefficient - coefficient.mean(0)
    dense = torch.einsum("vhn,nho->vno", centred, write)  # centred contribution of each neuron
    projected = torch.einsum("vno,no,np->vp", dense, basis[:, 0], basis[:, 0])
    torch.testing.assert_close(rebuilt[0] - embedding.mean(0), projected, rtol=1e-3, atol=1e-4)


def test_recoding_keeps_directions_in_the_span_of_texts_and_is_least_squares_otherwise():
    generator = torch.Generator().manual_seed(0)
    atom = normalise(torch.randn(5, 4, 9, generator=generator))
    atom[1, 2:] = 0  # a code that ended early
    weight = torch.randn(5, 4, generator=generator)
    direction = torch.einsum("ur,ure->ue", weight, atom)
    two, four = ablation.recode(direction, atom, [2, 4])
    torch.testing.assert_close(four, direction, rtol=1e-4, atol=1e-5)
    for row in range(5):
        best = torch.linalg.lstsq(atom[row, :2].T, direction[row][:, None]).solution
        torch.testing.assert_close(two[row], (atom[row, :2].T @ best)[:, 0], rtol=1e-4, atol=1e-5)


def test_fidelity_by_hand():
    text = torch.eye(2)
    embedding = torch.tensor([[2.0, 0.1], [0.1, 3.0], [1.0, 0.9], [0.2, 1.0]])
    label = torch.tensor([0, 1, 1, 1])
    none = ablation.Attributes(torch.empty(0, 2), torch.empty(4, 0, dtype=torch.bool))
    same = ablation.fidelity(embedding, embedding, text, label, none, 0.95)
    assert np.isnan(same.average_precision)
    assert (same.accuracy, same.relative_error, same.explained) == (0.75, 0, 1)
    interval = binomtest(3, 4).proportion_ci(0.95, "wilson")
    assert (same.accuracy_low, same.accuracy_high) == pytest.approx((interval.low, interval.high))
    mean = ablation.fidelity(embedding.mean(0).expand(4, 2), embedding, text, label, none, 0.95)
    assert mean.explained == pytest.approx(0, abs=1e-6)
    assert mean.accuracy == 0.75  # the mean is nearer to the second text
    assert ablation.fidelity(embedding * 2, embedding, text, label, none, 0.95).relative_error == pytest.approx(1)


def test_average_precision_by_hand():
    """Images are ranked by their cosine to each attribute's text. Without differences, its precision is its prevalence."""
    embedding = torch.tensor([[1.0, 0.0], [9.0, 3.0], [1.0, 1.0], [0.0, 2.0]])
    truth = torch.tensor([[1, 0], [0, 0], [1, 1], [0, 1]], dtype=torch.bool)
    attributes = ablation.Attributes(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), truth)
    label = torch.tensor([0, 0, 0, 1])
    measured = ablation.fidelity(embedding, embedding, torch.eye(2), label, attributes, 0.95)
    first = (1 / 1 + 2 / 3) / 2  # the images with the attribute have ranks 1 and 3
    second = (1 / 1 + 2 / 2) / 2
    assert measured.average_precision == pytest.approx((first + second) / 2)
    same = ablation.fidelity(embedding.mean(0).expand(4, 2), embedding, torch.eye(2), label, attributes, 0.95)
    assert same.average_precision == pytest.approx(0.5)


@pytest.mark.parametrize("levels", [2, 9, 10**6])  # many ties, some and none
def test_rankings_equal_those_of_scikit_learn(levels):
    generator = torch.Generator().manual_seed(levels)
    score = torch.randint(levels, (60, 7), generator=generator).float()
    truth = torch.rand(60, 7, generator=generator) < torch.linspace(0.1, 0.9, 7)
    expected = [average_precision_score(truth[:, column], score[:, column]) for column in range(7)]
    np.testing.assert_allclose(ablation.average_precision(score, truth), expected, rtol=1e-12)
    for column in range(7):
        area = ablation.auroc(score[:, column].numpy(), truth[:, column].numpy())
        assert area == pytest.approx(roc_auc_score(truth[:, column], score[:, column]), rel=1e-12)


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 30), (7, 30), (30, 30)])
def test_wilson_intervals_equal_those_of_scipy(successes, trials):
    expected = binomtest(successes, trials).proportion_ci(0.9, "wilson")
    assert ablation.wilson_interval(successes, trials, 0.9) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_effects_of_all_pairs_sum_to_the_variance_of_the_score(readout, coefficient):
    text = normalise(torch.randn(2, readout.embed, generator=torch.Generator().manual_seed(0)))
    score = sum_pairs(coefficient, readout) @ text.T
    along = [write_vectors(readout, head) @ text.T for head in range(readout.heads)]
    effect = [ablation.effects(coefficient[:, head], along[head], score).sum(0) for head in range(readout.heads)]
    torch.testing.assert_close(sum(effect), score.var(0, correction=0), rtol=1e-3, atol=1e-5)


def test_pairs_are_ranked_for_a_text_by_every_rule():
    cosine = np.array([[0.1, -0.9, 0.5], [0.3, 0.0, -0.2]])
    sign = np.array([[1, -1, 1], [-1, 1, 1]])
    effect = np.array([[0.0, 3.0, 1.0], [5.0, -4.0, 2.0]])
    ranks = ablation.rank_for_text(cosine, sign, effect)
    order = {rule: np.argsort(rank).tolist() for rule, rank in ranks.items()}
    assert order == {
        "write": [2, 3, 0, 4, 5, 1],
        "direction": [1, 2, 0, 4, 5, 3],
        "magnitude": [1, 2, 3, 5, 0, 4],
        "effect": [3, 1, 5, 2, 0, 4],
        "neurons": [0, 3, 2, 5, 1, 4],  # sums over heads: 5, -1, 3
    }


def test_removed_scores_are_those_of_the_rebuilt_embeddings(readout, coefficient):
    """Scores of several ablations at once equal those of embeddings that are rebuilt one by one."""
    generator = torch.Generator().manual_seed(0)
    mean, text = coefficient.mean(0), normalise(torch.randn(2, readout.embed, generator=generator))
    rank = torch.stack([torch.randperm(readout.pairs, generator=generator) for _ in range(2)]).unflatten(1, mean.shape)
    count = torch.tensor([3, readout.pairs // 2])
    removed = torch.zeros(len(coefficient), 2)
    for head in range(readout.heads):
        along = write_vectors(readout, head) @ text.T
        removed += ablation.removed_scores(coefficient[:, head] - mean[head], along, rank[:, head].T, count)
    for index in range(2):
        rebuilt = ablation.keep_pairs(coefficient, mean, rank[index] >= count[index], readout)
        expected = (sum_pairs(coefficient, readout) - rebuilt) @ text[index]
        torch.testing.assert_close(removed[:, index], expected, rtol=1e-4, atol=1e-5)
