import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp

from nadpipe.circuit import naming


def unit_rows(count, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return naming.unit(torch.randn(count, width, generator=generator))


def test_centring_takes_the_mean_off_and_restores_length():
    gap = torch.tensor([5.0, 0.0, 0.0, 0.0])  # what all texts share
    embedding = naming.unit(unit_rows(6, 4, 0) + gap)
    centred = naming.centre(embedding, embedding)
    torch.testing.assert_close(centred.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(centred, naming.unit(embedding - embedding.mean(0)))
    assert naming.centre(embedding[:1], embedding[:1]).norm() == 0


@pytest.mark.parametrize(("atoms", "width", "dictionary"), [(1, 20, 50), (7, 20, 50), (20, 20, 50), (30, 16, 12)])
def test_matching_pursuit_equals_scikit_learn(atoms, width, dictionary):
    signal, atom = unit_rows(40, width, 1).double(), unit_rows(dictionary, width, 2).double()
    code = naming.matching_pursuit(signal, atom, atoms)
    rank = min(atoms, width, dictionary)
    assert code.atom.shape == (40, rank)
    for row in range(40):
        weight = orthogonal_mp(atom.numpy().T, signal[row].numpy(), n_nonzero_coefs=rank)
        assert set(code.atom[row].tolist()) - {-1} == set(np.flatnonzero(weight).tolist())
        found = code.atom[row] >= 0
        np.testing.assert_allclose(code.weight[row][found], weight[code.atom[row][found]], atol=1e-9)
        left = signal[row].numpy() - atom.numpy().T @ weight
        energy = signal[row].square().sum().item()
        assert code.explained[row, -1] == pytest.approx(1 - left @ left / energy, abs=1e-6)  # atoms are unit to 1e-7


def test_explained_grows_with_every_atom_and_float32_agrees_with_float64():
    signal, atom = unit_rows(30, 48, 3), unit_rows(400, 48, 4)
    code = naming.matching_pursuit(signal, atom, 24)
    assert (code.explained.diff(dim=1) >= -1e-6).all()
    precise = naming.matching_pursuit(signal.double(), atom.double(), 24)
    assert (code.atom == precise.atom).float().mean() > 0.99
    torch.testing.assert_close(code.explained.double(), precise.explained, atol=1e-4, rtol=0)


def words(kind, atoms, width):
    """Dictionaries that are easy to screen and ones that are not: many atoms that hardly differ, and equal ones."""
    atom = unit_rows(atoms, width, 11)
    if kind == "near":
        atom = naming.unit(unit_rows(40, width, 12).repeat(-(-atoms // 40), 1)[:atoms] + 1e-3 * atom)
    if kind == "equal":
        atom[1::2] = atom[::2][: len(atom[1::2])]
    return atom


@pytest.mark.parametrize("kind", ["random", "near", "equal"])
@pytest.mark.parametrize("atoms", [10_500, 12_800])
def test_screening_in_bfloat16_never_changes_the_strongest_atom(monkeypatch, kind, atoms):
    dictionary, signal = words(kind, atoms, 64), unit_rows(70, 64, 13)
    screened = naming.Strongest(dictionary, screen=True)
    assert screened.screen
    correlation = (signal @ dictionary.T).abs()
    largest = correlation.max(1).values
    looked_at = []
    in_full = screened._of_all
    monkeypatch.setattr(screened, "_of_all", lambda residual: looked_at.append(len(residual)) or in_full(residual))
    torch.testing.assert_close(correlation.gather(1, screened(signal)[:, None])[:, 0], largest)
    if kind != "near":  # there, full precision itself rounds one way or the other
        assert torch.equal(screened(signal), correlation.argmax(1))  # of equal atoms the first
    assert (sum(looked_at) > 0) == (kind == "near")  # where many atoms hardly differ nothing is proven, so all are tried
    assert (naming.matching_pursuit(signal, dictionary, 8, screened).atom >= 0).all()
    if kind == "random":
        finders = (naming.Strongest(dictionary, screen) for screen in (True, False))
        with_, without = (naming.matching_pursuit(signal, dictionary, 24, finder) for finder in finders)
        assert torch.equal(with_.atom, without.atom)
        torch.testing.assert_close(with_.weight, without.weight, rtol=1e-4, atol=1e-5)


def test_small_dictionaries_are_not_screened():
    assert not naming.Strongest(words("random", 300, 16), screen=True).screen


def test_a_signal_that_is_an_atom_ends_its_pursuit():
    atom = unit_rows(10, 6, 5)
    code = naming.matching_pursuit(torch.stack([-2 * atom[3], torch.zeros(6)]), atom, 4)
    assert code.atom[0].tolist() == [3, -1, -1, -1]
    assert code.weight[0].tolist() == pytest.approx([-2, 0, 0, 0], abs=1e-5)
    assert code.explained[0].tolist() == pytest.approx([1, 1, 1, 1], abs=1e-5)
    assert code.atom[1].tolist() == [-1] * 4
    assert code.explained[1].tolist() == [0] * 4


def test_equal_atoms_are_not_taken_twice():
    atom = torch.cat([unit_rows(1, 5, 6)] * 3 + [unit_rows(2, 5, 7)])
    code = naming.matching_pursuit(unit_rows(8, 5, 8), atom, 5)
    for row in code.atom:
        kept = row[row >= 0].tolist()
        assert len({min(at, 2) if at < 3 else at for at in kept}) == len(kept)
    assert torch.isfinite(code.weight).all()


def test_nearest_texts_come_best_first():
    direction, text = torch.eye(3)[:2], naming.unit(torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1], [-1, 0, 0]]))
    cosine, index = naming.nearest(direction, text, 2)
    assert index[0].tolist() == [0, 1]
    assert cosine[0].tolist() == pytest.approx([1, 0.5**0.5])
    assert naming.nearest(direction, text, 9)[0].shape == (2, 4)


@pytest.mark.parametrize("k", [1, 5, 12])
def test_top_pairs_equal_a_sort_of_all_pairs(k):
    heads, neurons = 3, 4
    direction, text = unit_rows(heads * neurons, 6, 9).unflatten(0, (heads, neurons)), unit_rows(2, 6, 10)
    top = naming.TopPairs(k)
    for head in range(heads):
        top.add(head, direction[head], text)
    chosen = top.value()
    for row in range(2):
        cosine = direction.flatten(0, 1) @ text[row]
        order = cosine.argsort(descending=True, stable=True)[:k]
        assert (chosen.head[row] * neurons + chosen.neuron[row]).tolist() == order.tolist()
        torch.testing.assert_close(chosen.cosine[row], cosine[order])


def test_equal_cosines_choose_the_lower_pair():
    top = naming.TopPairs(3)
    for head in range(2):
        top.add(head, torch.ones(2, 2), torch.ones(1, 2))
    assert list(zip(top.value().head[0].tolist(), top.value().neuron[0].tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0)]
