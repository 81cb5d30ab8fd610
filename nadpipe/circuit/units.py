"""Units that are not rank one, as sums of pairs: their factors, write vectors and constants.

A unit's contribution is factor · write + constant, where the factor changes with the image and the write vectors do not:
r[n] = sum_h s[h, n] w[h, n] has rank at most H, and r[h] = sum_n s[h, n] w[h, n] = W_O^h (W_V^h U s[h]) rank at most d.
"""

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from nadpipe.circuit.readout import Readout, pair_constants, pooled_values
from nadpipe.circuit.unit_kinds import UnitName


class Subspace(Protocol):
    """One kind of unit whose units write into a subspace each."""

    def count(self, readout: Readout) -> int:
        """Return the number of units."""

    def factors(self, coefficient: Float[Tensor, "view head neuron"], readout: Readout) -> Float[Tensor, "view unit rank"]:
        """Compute the part of each unit's contribution that varies across images."""

    def writes(self, readout: Readout, units: slice) -> Float[Tensor, "unit rank embed"]:
        """Compute the vectors by which the factors of some units are multiplied."""

    def constants(self, readout: Readout) -> Float[Tensor, "unit embed"]:
        """Compute the sum of the constants b[h] of each unit's pairs: the part that is the same for all images."""


class Neurons:
    """Neurons: a neuron's factor is its coefficients over heads, its write vectors are w[h, n] over heads."""

    def count(self, readout: Readout) -> int:
        """Return the number of neurons."""
        return readout.neurons

    def factors(self, coefficient: Float[Tensor, "view head neuron"], readout: Readout) -> Float[Tensor, "view neuron head"]:
        """Return the coefficients with neurons first."""
        return coefficient.transpose(1, 2)

    def writes(self, readout: Readout, units: slice) -> Float[Tensor, "neuron head embed"]:
        """Compute w[h, n] of some neurons."""
        return torch.einsum("hdu,hed->uhe", readout.neuron_value[..., units], readout.output)

    def constants(self, readout: Readout) -> Float[Tensor, "neuron embed"]:
        """Sum the constants of each neuron's pairs."""
        return pair_constants(readout).sum(0).expand(readout.neurons, -1)


class Heads:
    """Heads: a head's factor is its pooled value, its write vectors are the rows of W_O^h^T."""

    def count(self, readout: Readout) -> int:
        """Return the number of heads."""
        return readout.heads

    def factors(self, coefficient: Float[Tensor, "view head neuron"], readout: Readout) -> Float[Tensor, "view head width"]:
        """Compute each head's pooled value."""
        return pooled_values(coefficient, readout)

    def writes(self, readout: Readout, units: slice) -> Float[Tensor, "head width embed"]:
        """Return W_O^h^T of some heads."""
        return readout.output[units].transpose(1, 2)

    def constants(self, readout: Readout) -> Float[Tensor, "head embed"]:
        """Sum the constants of each head's pairs."""
        return pair_constants(readout) * readout.neurons


SUBSPACE_UNITS: dict[UnitName, Subspace] = {"neuron": Neurons(), "head": Heads()}
