"""The common structure of vision transformers: a stream of tokens, and blocks of attention and MLP that add to it.

The families describe the layers of open_clip and timm by the classes below, which share the weights. Blocks then run alike for
all families, and the readout of each family is made from the same weights.
"""

import abc
import copy
import dataclasses
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import apply_rot_embed_cat
from torch import Tensor

from nadpipe.circuit.attention import view_trace
from nadpipe.circuit.readout import Readout, coefficients, other_paths, sum_pairs
from nadpipe.errors import NadpipeError
from nadpipe.towers.devices import full_float32
from nadpipe.towers.family import ImageTower, Precision
from nadpipe.towers.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class Linear:
    """Weight and bias of a linear layer."""

    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"] | None = None

    @classmethod
    def of(cls, module: torch.nn.Linear) -> "Linear":
        """Return the weights of a module."""
        return cls(module.weight, module.bias)

    def __call__(self, x: Float[Tensor, "*token in"]) -> Float[Tensor, "*token out"]:
        """Compute W x + b."""
        return F.linear(x, self.weight, self.bias)

    def double_bias(self) -> Float[Tensor, " out"]:
        """Return the bias, or zeros, in float64."""
        return torch.zeros_like(self.weight[:, 0]).double() if self.bias is None else self.bias.double()


@dataclasses.dataclass(frozen=True)
class Norm:
    """Weights of a LayerNorm: γ, β and ε."""

    weight: Float[Tensor, " width"]
    bias: Float[Tensor, " width"]
    eps: float

    @classmethod
    def of(cls, module: torch.nn.LayerNorm) -> "Norm":
        """Return the weights of a module with γ and β."""
        return cls(module.weight, module.bias, module.eps)

    def __call__(self, x: Float[Tensor, "*token width"]) -> Float[Tensor, "*token width"]:
        """Normalise tokens."""
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)

    def inverse_deviation(self, x: Float[Tensor, "*token width"]) -> Float[Tensor, "*token"]:
        """Compute 1/σ of each token."""
        return (x.var(-1, correction=0) + self.eps).rsqrt()


@dataclasses.dataclass(frozen=True)
class Attention:
    """Weights of the self-attention of a block.

    projections: queries, keys and values, in one layer or in three. inner: norm of the heads' values side by side, before the
    output. key_norm, query_norm: of each head. rotation: sines and cosines of rotary positions, for the tokens after the first
    `prefix`; half: layout of the rotation.
    """

    heads: int
    projections: tuple[Linear, ...]
    output: Linear
    inner: Norm | None = None
    query_norm: Callable[[Tensor], Tensor] | None = None
    key_norm: Callable[[Tensor], Tensor] | None = None
    rotation: Float[Tensor, "spatial rotation"] | None = None
    half: bool = False
    prefix: int = 0

    @property
    def value(self) -> Linear:
        """Weights of the values."""
        last = self.projections[-1]
        if len(self.projections) == 3:
            return last
        return Linear(last.weight.chunk(3)[2], None if last.bias is None else last.bias.chunk(3)[2])

    def project(
        self, normed: Float[Tensor, "view key stream"]
    ) -> tuple[
        Float[Tensor, "view head key width"], Float[Tensor, "view head key width"], Float[Tensor, "view head key width"]
    ]:
        """Compute queries, keys and values of all tokens, with rotary positions."""
        joined = [layer(normed) for layer in self.projections]
        parts = joined[0].chunk(3, dim=2) if len(joined) == 1 else joined
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        query = query if self.query_norm is None else self.query_norm(query)
        key = key if self.key_norm is None else self.key_norm(key)
        return self._rotate(query), self._rotate(key), value

    def _rotate(self, vectors: Float[Tensor, "view head key width"]) -> Float[Tensor, "view head key width"]:
        if self.rotation is None:
            return vectors
        rotated = apply_rot_embed_cat(vectors[:, :, self.prefix :], self.rotation, half=self.half)
        return torch.cat([vectors[:, :, : self.prefix], rotated.to(vectors.dtype)], dim=2)

    def write(self, mixed: Float[Tensor, "view head key width"]) -> Float[Tensor, "view key stream"]:
        """Compute what the heads write into the stream from their mixed values."""
        joined = mixed.transpose(1, 2).flatten(2)
        return self.output(joined if self.inner is None else self.inner(joined))


@dataclasses.dataclass(frozen=True)
class Block:
    """Weights of a block. hidden: layers of the MLP up to the neurons. scales: factors of layer scale, or None."""

    norm_1: Norm
    attention: Attention
    norm_2: Norm
    hidden: Callable[[Tensor], Tensor]
    output: Linear  # of the MLP
    scale_1: Float[Tensor, " stream"] | None = None
    scale_2: Float[Tensor, " stream"] | None = None

    def attend(self, stream: Float[Tensor, "view key stream"]) -> Float[Tensor, "view key stream"]:
        """Compute what the attention adds to the stream."""
        return self.scaled(self.attention.write(F.scaled_dot_product_attention(*self.attention.project(self.norm_1(stream)))))

    def scaled(self, written: Float[Tensor, "view key stream"]) -> Float[Tensor, "view key stream"]:
        """Apply the layer scale of the attention."""
        return written if self.scale_1 is None else written * self.scale_1

    def neurons(self, stream: Float[Tensor, "view key stream"]) -> Float[Tensor, "view key neuron"]:
        """Compute z: what the second matrix of the MLP reads."""
        return self.hidden(self.norm_2(stream))

    def write(self, z: Float[Tensor, "view key neuron"], bias: bool = True) -> Float[Tensor, "view key stream"]:
        """Compute what the neurons add to the stream, with or without the bias of the second matrix."""
        written = F.linear(z, self.output.weight, self.output.bias if bias else None)
        return written if self.scale_2 is None else written * self.scale_2

    def write_weight(self) -> Float[Tensor, "neuron stream"]:
        """Return U: what each neuron writes, in float64."""
        weight = self.output.weight.double()
        return (weight if self.scale_2 is None else weight * self.scale_2.double()[:, None]).T

    def scale(self) -> Float[Tensor, " stream"]:
        """Return the factors of the attention's layer scale, or ones, in float64."""
        return torch.ones_like(self.norm_1.weight).double() if self.scale_1 is None else self.scale_1.double()


@dataclasses.dataclass(frozen=True)
class Trunk:
    """A vision transformer without what follows its last block.

    embed: layers before the first block. prefix: number of tokens before the spatial ones, the class token first.
    """

    embed: Callable[[Tensor], Tensor]
    blocks: tuple[Block, ...]
    prefix: int
    grid: int


@dataclasses.dataclass(frozen=True)
class Run:
    """Record of a run up to the last early block, whose neurons are decomposed.

    stream: behind this block. z: its neurons. written: what they wrote into the stream, without bias. paths: what each block
    wrote at the first token so far. before: the stream before the last block of the tower, if it has run.
    """

    stream: Float[Tensor, "view key stream"]
    z: Float[Tensor, "view key neuron"]
    written: Float[Tensor, "view key stream"]
    paths: list[Float[Tensor, "view stream"]]
    before: Float[Tensor, "view key stream"] | None


@dataclasses.dataclass(frozen=True)
class TransformerTower(ImageTower):
    """A vision transformer that runs block by block and records what the readout needs. visual: open_clip's own tower."""

    visual: torch.nn.Module
    trunk: Trunk
    has_reference: bool
    preprocessing: Preprocessing
    weights: Readout
    precision: Precision
    block: int
    device: torch.device

    pool = None
    recipes = ("maskclip", "sclip", "clearclip")

    @property
    def readout(self) -> Readout:
        """Weights of the heads that are read out."""
        return self.weights

    @property
    def grid(self) -> int:
        """Side of the square of spatial tokens."""
        return self.trunk.grid

    @property
    def prefix(self) -> int:
        """Number of tokens that heads read before the spatial ones."""
        return self.trunk.prefix

    def run_to_neurons(self, pixels: Float[Tensor, "view 3 row column"]) -> Run:
        """Run the blocks up to that of the neurons, in the tower's precision. The stream is in float32."""
        early, last = self.trunk.blocks[: self.block + 1], self.trunk.blocks[-1]
        before = None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            stream = self.trunk.embed(pixels).float()  # sums of paths are exact only in float32
            paths = [stream[:, 0]]
            for block in early:
                before = stream if block is last else None
                attended = block.attend(stream)
                stream = stream + attended
                z = block.neurons(stream)
                paths.append(attended[:, 0])
                if block is not early[-1]:
                    added = block.write(z)
                    stream = stream + added
                    paths.append(added[:, 0])
        z, own = z.float(), early[-1]
        written = own.write(z, bias=False)
        added = written
        if own.output.bias is not None:
            added = written + (own.output.bias if own.scale_2 is None else own.output.bias * own.scale_2)
        paths.append(added[:, 0])
        return Run(stream + added, z, written, paths, before)

    @abc.abstractmethod
    def features(self, pixels: Float[Tensor, "view 3 row column"], tokens: bool = False) -> dict[str, Tensor]:
        """Run the tower and record the trace, and, if `tokens`, embeddings of the spatial tokens."""

    def recorded_activations(self, z: Float[Tensor, "view key neuron"]) -> dict[str, Tensor]:
        """Return the activations of the tokens that heads read: spatial, and before them."""
        first = self.trunk.prefix - self.prefix
        before = {"prefix_activation": z[:, first : self.trunk.prefix]} if self.prefix else {}
        return {"activation": z[:, self.trunk.prefix :], **before}

    def rebuild(self, features: Mapping[str, Tensor]) -> Float[Tensor, "view embed"]:
        """Sum the pairs and the rest."""
        trace = view_trace({name: values.float() for name, values in features.items()}, None)
        summed, rest = sum_pairs(coefficients(trace, self.readout), self.readout), other_paths(trace, self.readout)
        assert rest is not None
        return summed + rest

    def embedding(self, pixels: Float[Tensor, "view 3 row column"]) -> Float[Tensor, "view embed"]:
        """Compute the image embedding, not normalised. Blocks after that of the neurons run in float32."""
        return self.features(pixels)["embedding"]

    def reference_embedding(
        self, pixels: Float[Tensor, "view 3 row column"], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "view embed"]:
        """Compute the output of open_clip's own tower in float32 or float64, not normalised.

        Raises RuntimeError on a tower made by `without_reference`.
        """
        if not self.has_reference:
            raise RuntimeError("this tower was made by without_reference")
        reference = self.visual if dtype == torch.float32 else copy.deepcopy(self.visual).to(dtype)
        with full_float32():
            embedding = reference(pixels.to(self.device, dtype))
        return embedding[0] if isinstance(embedding, tuple) else embedding

    def without_reference(self) -> "TransformerTower":
        """Return the same tower. It shares all weights with open_clip's own layers, so there are none to free."""
        return dataclasses.replace(self, has_reference=False)


def change_block(block: Block, stream: Float[Tensor, "view key stream"]) -> dict[str, Float[Tensor, "view key stream"]]:
    """Compute the tokens that published recipes make of the last block. Class token and registers stay among the keys.

    stream: before this block.
    maskclip (arXiv 2112.01071): each token's own value. sclip (arXiv 2312.01597): values mixed by softmax(QQ^T) +
    softmax(KK^T), then residual connection and MLP. clearclip (arXiv 2407.12442): values mixed by softmax(QQ^T).
    """
    query, key, value = (part.contiguous() for part in block.attention.project(block.norm_1(stream)))
    by_query, by_key = (F.scaled_dot_product_attention(part, part, value) for part in (query, key))
    own, mixed, by_query = (block.scaled(block.attention.write(part)) for part in (value, by_query + by_key, by_query))
    full = stream + mixed
    return {"maskclip": own, "sclip": full + block.write(block.neurons(full)), "clearclip": by_query}


def choose_block(block: int | None, shown_block: int | None, blocks: int, needed: int) -> int:
    """Return the block of the neurons: `block`, or the last one that a head reads.

    needed: number of blocks that a neuron must have behind it to be read. Raises NadpipeError if no head reads the block's
    neurons.
    """
    if shown_block is not None:
        raise NadpipeError("segmentation.block: blocks of a vision transformer have other neurons; set null and model.block")
    last = blocks - 1 - needed
    if last < 0:
        raise NadpipeError("model: the vision transformer has one block, so no head reads neurons; choose a deeper one")
    block = last if block is None else block
    if not 0 <= block <= last:
        raise NadpipeError(f"model.block: no head reads the neurons of block {block} of {blocks}; choose one from 0 to {last}")
    return block


def check_size(image_size: int, token: int) -> None:
    """Raise NadpipeError if the size of images is not a whole number of tokens."""
    if image_size % token:
        raise NadpipeError(
            f"segmentation.crop: {image_size} pixels are not a whole number of tokens; choose a multiple of {token}"
        )


def centred(weight: Float[Tensor, "row stream"]) -> Float[Tensor, "row stream"]:
    """Fold the centring of a norm into the weight behind it: W (I - 1/D)."""
    return weight - weight.mean(1, keepdim=True)


def normalised(
    norm: Norm, stream: Float[Tensor, "view key stream"]
) -> tuple[Float[Tensor, "view key"], Float[Tensor, "view key stream"]]:
    """Compute 1/σ of each token, and the tokens with mean 0 and variance 1, before γ and β."""
    middle = stream - stream.mean(2, keepdim=True)
    scale = norm.inverse_deviation(stream)
    return scale, middle * scale[..., None]


def read_values(
    layer: Linear, norm: Norm, heads: int
) -> tuple[Float[Tensor, "head width stream"], Float[Tensor, "head width"]]:
    """Return W_V and b_V of heads with γ, β and the centring of the norm before them, in float64."""
    weight = layer.weight.double()
    value = centred(weight * norm.weight.double()).unflatten(0, (heads, -1))
    return value, (weight @ norm.bias.double() + layer.double_bias()).unflatten(0, (heads, -1))


def joined_readout(
    value: Float[Tensor, "head width stream"],
    value_bias: Float[Tensor, "head width"],
    output: Float[Tensor, "head embed width"],
    output_bias: Float[Tensor, " embed"],
    layer: list[int],
    write: Float[Tensor, "neuron stream"],
    scaled: bool,
) -> Readout:
    """Return a readout in float32. output: in the memory layout of W_O (see `Readout.joint_output`)."""
    return Readout(
        value=value.float(),
        value_bias=value_bias.float(),
        output=output.float().transpose(0, 1).contiguous().transpose(0, 1),
        output_bias=output_bias.float(),
        layer=torch.tensor(layer, device=value.device),
        write=write.float().contiguous(),
        scaled=scaled,
    )
