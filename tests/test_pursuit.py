import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp

from nadpipe.circuit.naming import normalise
from nadpipe.circuit.pursuit import Strongest, matching_pursuit, random_atoms


def unit_rows(count, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return normalise(torch.randn(count, width, generator=generator))


@pytest.mark.parametrize(("atoms", "width", "dictionary"), [(1, 20, 50), (7, 20, 50), (20, 20, 50), (30, 16, 12)])
def test_matching_pursuit_equals_scikit_learn(atoms, width, dictionary):
    signal, atom = unit_rows(40, width, 1).double(), unit_rows(dictionary, width, 2).double()
    code = matching_pursuit(signal, atom, atoms)
    rank = min(atoms, width, dictionary)
    assert code.atom.shape == (40, rank)
    for row in range(40):
        weight = orthogonal_mp(atom.numpy().T, signal[row].numpy(), n_nonzero_coefs=rank)
        assert set(code.atom[row].tolist()) - {-1} == set(np.flatnonzero(weight).tolist())
        chosen = code.atom[row] >= 0
        np.testing.assert_allclose(code.weight[row][chosen], weight[code.atom[row][chosen]], atol=1e-9)
        left = signal[row].numpy() - atom.numpy().T @ weight
        energy = signal[row].square().sum().item()
        assert code.explained[row, -1] == pytest.approx(1 - left @ left / energy, abs=1e-6)  # atoms have unit length to 1e-7


def test_explained_grows_with_every_atom_and_float32_agrees_with_float64():
    signal, atom = unit_rows(30, 48, 3), unit_rows(400, 48, 4)
    code = matching_pursuit(signal, atom, 24)
    assert (code.explained.diff(dim=1) >= -1e-6).all()
    precise = matching_pursuit(signal.double(), atom.double(), 24)
    assert (code.atom == precise.atom).float().mean() > 0.99
    torch.testing.assert_close(code.explained.double(), precise.explained, atol=1e-4, rtol=0)


def words(kind, atoms, width):
    """Return a dictionary that is easy to screen, or one of atoms that are nearly equal, or one of pairs of equal atoms."""
    atom = unit_rows(atoms, width, 11)
    if kind == "near":
        atom = normalise(unit_rows(40, width, 12).repeat(-(-atoms // 40), 1)[:atoms] + 1e-3 * atom)
    if kind == "equal":
        atom[1::2] = atom[::2][: len(atom[1::2])]
    return atom


@pytest.mark.parametrize("kind", ["random", "near", "equal"])
@pytest.mark.parametrize("atoms", [10_500, 12_800])
def test_screening_in_bfloat16_never_changes_the_strongest_atom(monkeypatch, kind, atoms):
    dictionary, signal = words(kind, atoms, 64), unit_rows(70, 64, 13)
    screened = Strongest(dictionary, screen=True)
    assert screened.screen
    correlation = (signal @ dictionary.T).abs()
    largest = correlation.max(1).values
    fully_correlated = []
    in_full = screened._of_all
    monkeypatch.setattr(screened, "_of_all", lambda residual: fully_correlated.append(len(residual)) or in_full(residual))
    torch.testing.assert_close(correlation.gather(1, screened(signal)[:, None])[:, 0], largest)
    if kind != "near":  # of nearly equal atoms even full precision may choose either
        assert torch.equal(screened(signal), correlation.argmax(1))  # of equal atoms the first
    assert (sum(fully_correlated) > 0) == (kind == "near")  # nearly equal atoms prove nothing, so all are correlated
    assert (matching_pursuit(signal, dictionary, 8, screened).atom >= 0).all()
    if kind == "random":
        finders = (Strongest(dictionary, screen) for screen in (True, False))
        rough, full = (matching_pursuit(signal, dictionary, 24, finder) for finder in finders)
        assert torch.equal(rough.atom, full.atom)
        torch.testing.assert_close(rough.weight, full.weight, rtol=1e-4, atol=1e-5)


def test_small_dictionaries_are_not_screened():
    assert not Strongest(words("random", 300, 16), screen=True).screen


def test_a_signal_that_is_an_atom_ends_its_pursuit():
    atom = unit_rows(10, 6, 5)
    code = matching_pursuit(torch.stack([-2 * atom[3], torch.zeros(6)]), atom, 4)
    assert code.atom[0].tolist() == [3, -1, -1, -1]
    assert code.weight[0].tolist() == pytest.approx([-2, 0, 0, 0], abs=1e-5)
    assert code.explained[0].tolist() == pytest.approx([1, 1, 1, 1], abs=1e-5)
    assert code.atom[1].tolist() == [-1] * 4
    assert code.explained[1].tolist() == [0] * 4


def test_equal_atoms_are_not_taken_twice():
    dictionary = torch.cat([unit_rows(1, 5, 6)] * 3 + [unit_rows(2, 5, 7)])
    code = matching_pursuit(unit_rows(8, 5, 8), dictionary, 5)
    for row in code.atom:
        kept = row[row >= 0].tolist()
        assert len({max(atom, 2) for atom in kept}) == len(kept)  # atoms 0, 1 and 2 are equal
    assert torch.isfinite(code.weight).all()


def test_random_atoms_have_the_dictionarys_mean_and_covariance_and_no_text():
    generator = torch.Generator().manual_seed(0)
    scale = 0.95 ** torch.arange(60)
    scale[50:] = 0
    dictionary = normalise(torch.randn(4000, 60, generator=generator) * scale + torch.tensor([1.0] + 59 * [0.0]))
    drawn = random_atoms(dictionary, generator)
    assert drawn.shape == dictionary.shape
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(4000))
    torch.testing.assert_close(drawn.mean(0), dictionary.mean(0), rtol=0, atol=0.01)
    spread, expected = drawn.T.cov(), dictionary.T.cov()
    assert (spread - expected).norm() < 0.15 * expected.norm()
    assert (torch.eye(60).mul(expected.trace() / 60) - expected).norm() > 0.5 * expected.norm()  # far from a sphere
    assert drawn[:, 50:].abs().max() < 1e-6  # no text has a part there
    assert (drawn @ dictionary[:500].T).max(0).values.median() < 0.9999
    again = random_atoms(dictionary, torch.Generator().manual_seed(7))
    assert torch.equal(again, random_atoms(dictionary, torch.Generator().manual_seed(7)))
    assert not torch.equal(again, drawn)


def test_fewer_atoms_than_dimensions_have_a_control_too():
    dictionary = normalise(torch.randn(3, 12, generator=torch.Generator().manual_seed(0)))
    drawn = random_atoms(dictionary, torch.Generator().manual_seed(1))
    basis, _ = torch.linalg.qr(dictionary.T)
    torch.testing.assert_close(drawn @ basis @ basis.T, drawn, rtol=0, atol=1e-5)
