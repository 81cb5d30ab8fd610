"""Vision transformers that read out the class token: the heads of all blocks after that of the neurons write into it.

Norms are folded into the weights of the readout, except their division by σ, which is recorded per view: the scale of the norm
before each block's heads, and the gain of the norm behind all blocks. Some families have an inner norm between the heads of a
block and their output. Its σ is that of the class token, one number per block, and multiplies the recorded scale. The heads'
biases are divided by it too, so they are read from one more coordinate of the stream, which is this factor.
"""

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nadpipe.circuit.readout import Readout
from nadpipe.towers.devices import full_float32
from nadpipe.towers.family import Part, Precision
from nadpipe.towers.preprocessing import Preprocessing
from nadpipe.towers.transformer import (
    Block,
    Linear,
    Norm,
    Run,
    TransformerTower,
    Trunk,
    centred,
    change_block,
    choose_block,
    joined_readout,
    normalised,
    read_values,
)


@dataclasses.dataclass(frozen=True)
class ClassTokenTower(TransformerTower):
    """A vision transformer whose embedding is a norm and a projection of the class token."""

    norm: Norm  # behind the last block
    projection: Linear
    from_centred: Float[Tensor, "embed stream"]  # maps the class token divided by σ of the norm to the embedding
    shift: Float[Tensor, " embed"]  # what β of the norm and the projection's bias add

    @property
    def parts(self) -> tuple[Part, ...]:
        """Paths of the rest: the input, the heads and MLP of each block at the class token, and biases behind the last norm.

        Heads of blocks after that of the neurons are without what the pairs read.
        """
        paths = [(name, block) for block in range(len(self.trunk.blocks)) for name in ("heads", "mlp")]
        return (("input", None), *paths, ("shift", None))

    def features(self, pixels: Float[Tensor, "view 3 row column"], tokens: bool = False) -> dict[str, Tensor]:
        """Run the tower and record the trace, and, if `tokens`, embeddings of the spatial tokens."""
        blocks, late = self.trunk.blocks, self.block + 1
        with full_float32():
            run = self.run_to_neurons(pixels.to(self.device))
            stream, embedded = run.stream, {}
            reads: dict[str, list[Tensor]] = {"attention": [], "scale": [], "stream": [], "heads": []}
            for index, block in enumerate(blocks[late:], start=late):
                is_last = index + 1 == len(blocks)
                if is_last and tokens:
                    embedded = {"token_embedding": self._embed_tokens(block, stream)}
                query, key, value = block.attention.project(block.norm_1(stream))
                row = torch.softmax(query[:, :, :1] @ key.transpose(2, 3) * query.shape[3] ** -0.5, dim=3)
                # only the class token is read out of the last block
                mixed = row @ value if is_last else F.scaled_dot_product_attention(query, key, value)
                for name, values in self._read(block, index, stream, run.written, row[:, :, 0], mixed).items():
                    reads[name].append(values)
                attended = block.scaled(block.attention.write(mixed))
                stream = (stream[:, :1] if is_last else stream) + attended
                added = block.write(block.neurons(stream))
                stream = stream + added
                run.paths.append(added[:, 0])
            return self._record(run, stream[:, 0], reads) | embedded

    def _embed_tokens(self, block: Block, stream: Float[Tensor, "view key stream"]) -> Float[Tensor, "view recipe token embed"]:
        """Compute embeddings of the spatial tokens by `change_block`, the last norm and the projection."""
        changed = change_block(block, stream)
        written = torch.stack([changed[name][:, self.prefix :] for name in self.recipes], dim=1)
        return self.projection(self.norm(written))

    def _read(
        self,
        block: Block,
        index: int,
        stream: Float[Tensor, "view key stream"],
        written: Float[Tensor, "view key stream"],
        attention: Float[Tensor, "view head key"],
        mixed: Float[Tensor, "view head query width"],
    ) -> dict[str, Tensor]:
        """Record what the heads of a late block read at the class token.

        written: what the neurons wrote into the stream. mixed: the heads' values, mixed by the attention, of the class token
        first. heads: what the heads write into the embedding from all of the stream but what the neurons wrote, without biases
        and gain.
        """
        scale, standard = normalised(block.norm_1, stream)
        first = (index - self.block - 1) * block.attention.heads
        heads = slice(first, first + block.attention.heads)
        inner = block.attention.inner
        if inner is not None:
            factor = inner.inverse_deviation(mixed[:, :, 0].flatten(1))[:, None]
            scale, standard = scale * factor, standard * factor[..., None]
            standard = torch.cat([standard, factor[..., None].expand(-1, standard.shape[1], 1)], dim=2)
        read = (attention * scale[:, None]) @ (stream - written)
        if inner is not None:
            read = torch.cat([read, factor[..., None].expand(-1, read.shape[1], 1)], dim=2)
        value = torch.einsum("vhs,hds->vhd", read, self.readout.value[heads])
        others = torch.einsum("vhd,hed->ve", value, self.readout.output[heads])
        return {"attention": attention, "scale": scale, "stream": standard, "heads": others}

    def _record(self, run: Run, last: Float[Tensor, "view stream"], reads: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        """Return all features. last: the class token behind all blocks."""
        gain = self.norm.inverse_deviation(last)
        paths = list((torch.stack([path.float() for path in run.paths], dim=1) @ self.from_centred.T).unbind(1))
        early = 1 + 2 * (self.block + 1)
        late = [path for pair in zip(reads["heads"], paths[early:], strict=True) for path in pair]
        scaled = torch.stack([*paths[:early], *late], dim=1) * gain[:, None, None]
        shift = self.shift.expand(len(last), 1, -1)
        return {
            **self.recorded_activations(run.z),
            "attention": torch.cat(reads["attention"], dim=1),
            "scale": torch.stack(reads["scale"], dim=1),
            "gain": gain,
            "part": torch.cat([scaled, shift], dim=1),
            "stream": torch.stack(reads["stream"], dim=1),
            "embedding": self.projection(self.norm(last)),
        }


def open_class_token_tower(
    visual: torch.nn.Module,
    trunk: Trunk,
    norm: Norm,
    projection: Linear,
    preprocessing: Preprocessing,
    precision: Precision,
    block: int | None,
    shown_block: int | None,
) -> ClassTokenTower:
    """Return a tower that shares all weights with `visual`.

    block: block whose MLP neurons are decomposed; the heads of all later blocks read them. shown_block: must be None.
    Raises NadpipeError if there is no such block or no head reads it.
    """
    block = choose_block(block, shown_block, len(trunk.blocks), needed=1)
    weight = projection.weight.detach().double()
    from_centred = centred(weight * norm.weight.double())
    return ClassTokenTower(
        visual=visual,
        trunk=trunk,
        has_reference=True,
        preprocessing=preprocessing,
        weights=make_readout(trunk, block, from_centred),
        precision=precision,
        block=block,
        device=trunk.blocks[0].norm_1.weight.device,
        norm=norm,
        projection=projection,
        from_centred=from_centred.float(),
        shift=(weight @ norm.bias.double() + projection.double_bias()).float(),
    )


def make_readout(trunk: Trunk, block: int, from_centred: Float[Tensor, "embed stream"]) -> Readout:
    """Return the weights of all heads after a block, with the norms folded in.

    from_centred: maps the class token divided by σ of the last norm to the embedding, in float64.
    """
    values, value_biases, outputs, layer = [], [], [], []
    bias = torch.zeros_like(from_centred[0])
    write = trunk.blocks[block].write_weight()
    for index, late in enumerate(trunk.blocks[block + 1 :], start=block + 1):
        heads, inner = late.attention.heads, late.attention.inner
        value, value_bias = read_values(late.attention.value, late.norm_1, heads)
        output = late.attention.output
        weight, output_bias = output.weight.double(), output.double_bias()
        if inner is not None:
            output_bias = output_bias + weight @ inner.bias.double()
            weight = centred(weight * inner.weight.double())
            value = torch.cat([value, value_bias[..., None]], dim=2)
            value_bias = torch.zeros_like(value_bias)
        values.append(value)
        value_biases.append(value_bias)
        outputs.append((from_centred * late.scale() @ weight).unflatten(1, (heads, -1)).transpose(0, 1))
        bias = bias + late.scale() * output_bias
        layer += [index] * heads
    if values[0].shape[2] > write.shape[1]:  # neurons write nothing into the coordinate of the inner norms
        write = F.pad(write, (0, 1))
    return joined_readout(
        torch.cat(values), torch.cat(value_biases), torch.cat(outputs), from_centred @ bias, layer, write, scaled=True
    )
