"""The ledger of an embedding: the parts that sum to it, and the share of it that each part carries."""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nadpipe.circuit.readout import Readout, pooled_values

Part = tuple[str, int | None]  # name of a part, and the layer of the tower that it belongs to


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Parts of the embeddings of some views.

    mean: of each part over views. product: mean over views of ⟨part, y⟩, where y is the embedding.
    """

    mean: Float[Tensor, "part embed"]
    product: Float[Tensor, " part"]


def name_parts(readout: Readout, rest: Sequence[Part]) -> list[Part]:
    """Return the parts of an embedding in the order of `split_embedding`. rest: parts of the rest."""
    pooled = not readout.layer.any()
    return [*(("pairs", None if pooled else layer) for layer in readout.layers), *rest, ("constants", None)]


def split_embedding(
    coefficient: Float[Tensor, "view head neuron"],
    readout: Readout,
    gain: Float[Tensor, " view"] | None,
    rest: Float[Tensor, "view part embed"] | None,
) -> Float[Tensor, "view all_parts embed"]:
    """Split embeddings into the pairs of each layer of heads, the parts of the rest, and the biases of the heads.

    rest: parts that reach the embedding by other paths; None for none. The parts sum to the embedding.
    """
    written = torch.einsum("vhd,hed->vhe", pooled_values(coefficient, readout), readout.output)
    pairs = written.new_zeros(len(written), len(readout.layers), readout.embed).index_add(1, readout.layer_index, written)
    constant = readout.constant.expand(len(pairs), 1, -1)
    constant = constant if gain is None else constant * gain[:, None, None]
    return torch.cat([pairs, *([] if rest is None else [rest]), constant], dim=1)


def shares(ledger: Ledger) -> tuple[Float[Tensor, " part"], Float[Tensor, " part"]]:
    """Compute each part's share of the embeddings' energy, and of their variance over views. Each of both sums to 1.

    The shares of energy are mean ⟨part, y⟩ / mean ‖y‖², those of variance the same with the means over views subtracted. A part
    that points against the embedding has a negative share. The shares of variance are NaN if the embedding does not vary.
    """
    varying = ledger.product - ledger.mean @ ledger.mean.sum(0)
    variance = varying.sum()
    constant = variance <= 1e-6 * ledger.product.sum()  # within the rounding of float32
    return ledger.product / ledger.product.sum(), varying / (torch.nan if constant else variance)
