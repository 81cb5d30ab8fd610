"""Vision transformers that end in an attention pool: a learned query reads all tokens behind the last block.

Only the heads of the pool are read out. They read what the neurons of any block wrote into the stream. The norm before the pool
is folded into the weights of the readout, except its division by σ, which is recorded per view and token.
"""

import abc
import dataclasses
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from nadpipe.towers.devices import full_float32
from nadpipe.towers.family import Part, Precision
from nadpipe.towers.preprocessing import Preprocessing
from nadpipe.towers.transformer import (
    Linear,
    Norm,
    TransformerTower,
    Trunk,
    change_block,
    choose_block,
    joined_readout,
    normalised,
    read_values,
)


@dataclasses.dataclass(frozen=True)
class Pool(abc.ABC):
    """Weights of an attention pool with one query.

    norm: before the pool. pulled: the query of each head, pulled back through W_K and scaled, so that its product with a
    normalised token is the attention's score up to a constant. prefix: tokens before the spatial ones that the pool reads.
    """

    norm: Norm
    heads: int
    pulled: Float[Tensor, "head stream"]
    value: Linear
    output: Linear
    prefix: int

    scaled: ClassVar[bool] = False  # True if a norm follows the heads

    @property
    @abc.abstractmethod
    def parts(self) -> tuple[str, ...]:
        """Names of the paths to the embedding that do not go through the heads alone."""

    @abc.abstractmethod
    def finish(self, pooled: Float[Tensor, "*view width"]) -> Float[Tensor, "*view embed"]:
        """Compute the embedding from what the heads wrote."""

    @abc.abstractmethod
    def projection(self) -> Float[Tensor, "embed width"]:
        """Return the map from what the heads write, divided by σ of a norm behind them, to the embedding, in float64."""

    @abc.abstractmethod
    def gain(self, pooled: Float[Tensor, "view width"]) -> Float[Tensor, " view"] | None:
        """Compute 1/σ of the norm behind the heads; None without one."""

    @abc.abstractmethod
    def other_parts(self, pooled: Float[Tensor, "view width"]) -> list[Float[Tensor, "view embed"]]:
        """Compute what the paths of `parts` add to the embedding."""

    def attention(self, normed: Float[Tensor, "view key stream"]) -> Float[Tensor, "view head key"]:
        """Compute the query's row of attention, per head. Its product with b_K is the same for all tokens and cancels."""
        return torch.softmax(self.pulled @ normed.transpose(1, 2), dim=2)

    def pool(self, attention: Float[Tensor, "view head key"], normed: Float[Tensor, "view key stream"]) -> Tensor:
        """Compute what the heads write (view, width)."""
        weight = self.value.weight.unflatten(0, (self.heads, -1))
        value = torch.einsum("vhs,hds->vhd", attention @ normed, weight).flatten(1)
        return self.output(value if self.value.bias is None else value + self.value.bias)


@dataclasses.dataclass(frozen=True)
class QueryPoolTower(TransformerTower):
    """A vision transformer whose embedding is made by an attention pool."""

    head: Pool

    @property
    def prefix(self) -> int:
        """Number of tokens that the pool reads before the spatial ones."""
        return self.head.prefix

    @property
    def parts(self) -> tuple[Part, ...]:
        """Paths of the rest: what else the heads read, and the paths behind them that are not linear or constant."""
        layer = len(self.trunk.blocks)
        return (("heads", layer), *((name, None if name == "shift" else layer) for name in self.head.parts))

    def features(self, pixels: Float[Tensor, "view 3 row column"], tokens: bool = False) -> dict[str, Tensor]:
        """Run the tower and record the trace, and, if `tokens`, embeddings of the spatial tokens."""
        head, first = self.head, self.trunk.prefix - self.prefix
        with full_float32():
            run = self.run_to_neurons(pixels.to(self.device))
            stream, before = run.stream, run.before
            for block in self.trunk.blocks[self.block + 1 :]:
                before = stream
                stream = stream + block.attend(stream)
                stream = stream + block.write(block.neurons(stream))
            keys, written = stream[:, first:], run.written[:, first:]
            normed = head.norm(keys)
            attention = head.attention(normed)
            pooled = head.pool(attention, normed)
            scale, standard = normalised(head.norm, keys)
            value = torch.einsum("vhs,hds->vhd", (attention * scale[:, None]) @ (keys - written), self.readout.value)
            others = torch.einsum("vhd,hed->ve", value, self.readout.output)
            gain = head.gain(pooled)
            parts = [others if gain is None else others * gain[:, None], *head.other_parts(pooled)]
            recorded = {
                **self.recorded_activations(run.z),
                "attention": attention,
                "scale": scale[:, None],
                "part": torch.stack(parts, dim=1),
                "stream": standard[:, None],
                "embedding": head.finish(pooled),
            }
            if gain is not None:
                recorded["gain"] = gain
            if tokens:
                assert before is not None
                recorded["token_embedding"] = self._embed_tokens(before, stream)
        return recorded

    def _embed_tokens(
        self, before: Float[Tensor, "view key stream"], stream: Float[Tensor, "view key stream"]
    ) -> Float[Tensor, "view recipe token embed"]:
        """Compute embeddings of the spatial tokens: the pool is applied to each token alone, as if there were no other.

        maskclip: tokens behind the last block. sclip, clearclip: tokens of a changed last block (`change_block`).
        before: the stream before the last block.
        """
        changed = change_block(self.trunk.blocks[-1], before) | {"maskclip": stream}
        tokens = torch.stack([changed[name][:, self.trunk.prefix :] for name in self.recipes], dim=1)
        return self.head.finish(self.head.output(self.head.value(self.head.norm(tokens))))


def open_query_pool_tower(
    visual: torch.nn.Module,
    trunk: Trunk,
    head: Pool,
    preprocessing: Preprocessing,
    precision: Precision,
    block: int | None,
    shown_block: int | None,
) -> QueryPoolTower:
    """Return a tower that shares all weights with `visual`.

    block: block whose MLP neurons are decomposed, by default the last. shown_block: must be None. Raises NadpipeError if there
    is no such block.
    """
    blocks = len(trunk.blocks)
    block = choose_block(block, shown_block, blocks, needed=0)
    value, value_bias = read_values(head.value, head.norm, head.heads)
    projection = head.projection()
    output = (projection @ head.output.weight.double()).unflatten(1, (head.heads, -1)).transpose(0, 1)
    readout = joined_readout(
        value,
        value_bias,
        output,
        projection @ head.output.double_bias(),
        [blocks] * head.heads,
        trunk.blocks[block].write_weight(),
        scaled=head.scaled,
    )
    return QueryPoolTower(
        visual=visual,
        trunk=trunk,
        has_reference=True,
        preprocessing=preprocessing,
        weights=readout,
        precision=precision,
        block=block,
        device=trunk.blocks[0].norm_1.weight.device,
        head=head,
    )


def pull_query(query: Float[Tensor, " width"], key: Float[Tensor, "width stream"], heads: int) -> Float[Tensor, "head stream"]:
    """Return the query of each head pulled back through W_K, divided by the square root of the head's width."""
    split = query.double().unflatten(0, (heads, -1))
    pulled = torch.einsum("hd,hds->hs", split, key.double().unflatten(0, (heads, -1)))
    return (pulled * split.shape[1] ** -0.5).float()
