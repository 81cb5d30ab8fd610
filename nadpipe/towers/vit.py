"""Vision transformers with a class token: open_clip's VisionTransformer, as OpenAI, LAION, DataComp and others trained it.

The neurons are those of the MLP of one block, after the activation function. They write into the stream of tokens, which the
heads of all later blocks read at the class token. Norms are folded into the weights of the readout, except their division by σ,
which is recorded per view: the scale of the norm before each block's heads, and the gain of the norm behind all blocks.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.transformer import LayerScale, ResidualAttentionBlock, VisionTransformer
from torch import Tensor

from nadpipe.circuit.attention import resize_tokens, view_trace
from nadpipe.circuit.readout import Readout, coefficients, other_paths, sum_pairs
from nadpipe.errors import NadpipeError
from nadpipe.towers.devices import full_float32
from nadpipe.towers.family import Family, ImageTower, Part, Precision
from nadpipe.towers.preprocessing import Preprocessing

# settings of a vision config that put something non-linear behind the heads or the neurons, or read out something else
UNSUPPORTED = ("attentional_pool", "scale_attn", "scale_attn_inner", "scale_fc", "scale_heads", "scaled_cosine_attn", "qk_norm")


@dataclasses.dataclass(frozen=True)
class VitTower(ImageTower):
    """A vision transformer that runs block by block and records what the readout needs."""

    visual: VisionTransformer
    has_reference: bool
    preprocessing: Preprocessing
    weights: Readout
    projection: Float[Tensor, "embed stream"]  # of a centred class token, with γ of the last norm
    shift: Float[Tensor, " embed"]  # what β of the last norm writes
    precision: Precision
    block: int
    device: torch.device

    pool = None
    recipes = ("maskclip", "sclip", "clearclip")

    @property
    def readout(self) -> Readout:
        """Weights of the heads after the block of the neurons."""
        return self.weights

    @property
    def grid(self) -> int:
        """Side of the square of spatial tokens."""
        return round((len(self.visual.positional_embedding) - 1) ** 0.5)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Paths of the rest: the input, the heads and MLP of each block at the class token, and β of the last norm.

        Heads of blocks after that of the neurons are without what the pairs read.
        """
        blocks = range(len(self.visual.transformer.resblocks))
        paths = [(name, block) for block in blocks for name in ("heads", "mlp")]
        return (("input", None), *paths, ("shift", None))

    def features(self, pixels: Float[Tensor, "view 3 row column"], tokens: bool = False) -> dict[str, Tensor]:
        """Run the tower and record the trace, and, if `tokens`, embeddings of the spatial tokens."""
        blocks, late = self.visual.transformer.resblocks, self.block + 1
        with full_float32():
            stream, z, direct = self._run_to_neurons(pixels.to(self.device))
            own = blocks[self.block]
            written = F.linear(z, own.mlp.c_proj.weight)
            added, written = (own.ls_2(values) for values in (written + own.mlp.c_proj.bias, written))
            stream = stream + added
            direct.append(added[:, 0])
            embedded = None
            reads: dict[str, list[Tensor]] = {"attention": [], "scale": [], "stream": [], "heads": []}
            for index, block in enumerate(blocks[late:], start=late):
                normed = block.ln_1(stream)
                for name, values in self._read(block, index, stream, written, normed).items():
                    reads[name].append(values)
                if index + 1 == len(blocks):  # only the class token is read out
                    embedded = self._embed_tokens(block, stream, normed) if tokens else None
                    stream, query = stream[:, :1], normed[:, :1]
                else:
                    query = normed
                attended = block.ls_1(block.attention(query, normed, normed))
                stream = stream + attended
                added = block.ls_2(block.mlp(block.ln_2(stream)))
                stream = stream + added
                direct.append(added[:, 0])
            recorded = self._record(z, stream[:, 0], direct, reads)
        return recorded if embedded is None else recorded | {"token_embedding": embedded}

    def _run_to_neurons(
        self, pixels: Float[Tensor, "view 3 row column"]
    ) -> tuple[Float[Tensor, "view key stream"], Float[Tensor, "view key neuron"], list[Float[Tensor, "view stream"]]]:
        """Run the tower up to the neurons.

        Returns the stream to which their MLP will add, the activations z, and the paths of the class token so far.
        """
        early = self.visual.transformer.resblocks[: self.block + 1]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            stream = self._embed(pixels).float()  # sums of paths are exact only in float32
            direct = [stream[:, 0]]
            for block in early:
                attended = block.ls_1(block.attention(block.ln_1(stream)))
                stream = stream + attended
                direct.append(attended[:, 0])
                hidden = block.mlp.gelu(block.mlp.c_fc(block.ln_2(stream)))
                if block is not early[-1]:
                    added = block.ls_2(block.mlp.c_proj(hidden))
                    stream = stream + added
                    direct.append(added[:, 0])
        return stream, hidden.float(), direct

    def _embed(self, pixels: Float[Tensor, "view 3 row column"]) -> Float[Tensor, "view key stream"]:
        """Compute the stream before the first block. Patch dropout is for training and drops nothing here."""
        visual = self.visual
        patches = visual.conv1(pixels).flatten(2).transpose(1, 2)
        token = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        return visual.ln_pre(torch.cat([token, patches], dim=1) + visual.positional_embedding)

    def _embed_tokens(
        self,
        block: ResidualAttentionBlock,
        stream: Float[Tensor, "view key stream"],
        normed: Float[Tensor, "view key stream"],
    ) -> Float[Tensor, "view recipe token embed"]:
        """Compute embeddings of the spatial tokens by changes of the last block, as published.

        maskclip (arXiv 2112.01071): each token's own value. sclip (arXiv 2312.01597): values mixed by softmax(QQ^T) +
        softmax(KK^T), then residual connection and MLP. clearclip (arXiv 2407.12442): values mixed by softmax(QQ^T). The last
        norm and the projection follow. The class token is among the keys.
        """
        module = block.attn
        joined = F.linear(normed, module.in_proj_weight, module.in_proj_bias)
        query, key, value = (
            part.unflatten(2, (module.num_heads, -1)).transpose(1, 2).contiguous() for part in joined.chunk(3, dim=2)
        )
        by_query, by_key = (F.scaled_dot_product_attention(part, part, value) for part in (query, key))
        own, mixed, by_query = (
            block.ls_1(module.out_proj(part.transpose(1, 2).flatten(2))) for part in (value, by_query + by_key, by_query)
        )
        full = stream + mixed
        full = full + block.ls_2(block.mlp(block.ln_2(full)))
        written = torch.stack([own, full, by_query], dim=1)[:, :, 1:]
        return self.visual.ln_post(written) @ self.visual.proj

    def _read(
        self,
        block: ResidualAttentionBlock,
        index: int,
        stream: Float[Tensor, "view key stream"],
        written: Float[Tensor, "view key stream"],
        normed: Float[Tensor, "view key stream"],
    ) -> dict[str, Tensor]:
        """Record what the heads of a late block read at the class token.

        written: what the neurons wrote into the stream. heads: what the heads write into the embedding from all of the stream
        but this, without biases and gain.
        """
        attention = _class_attention(block.attn, normed)
        centred = stream - stream.mean(2, keepdim=True)
        scale = (centred.square().mean(2) + block.ln_1.eps).rsqrt()
        first = (index - self.block - 1) * block.attn.num_heads
        heads = slice(first, first + block.attn.num_heads)
        read = (attention * scale[:, None]) @ (stream - written)
        value = torch.einsum("vhs,hds->vhd", read, self.readout.value[heads])
        others = torch.einsum("vhd,hed->ve", value, self.readout.output[heads])
        return {"attention": attention, "scale": scale, "stream": centred * scale[..., None], "heads": others}

    def _record(
        self,
        z: Float[Tensor, "view key neuron"],
        last: Float[Tensor, "view stream"],
        direct: list[Float[Tensor, "view stream"]],
        reads: dict[str, list[Tensor]],
    ) -> dict[str, Tensor]:
        """Return all features. direct: paths of the class token, in the order of `parts` without the late heads."""
        norm = self.visual.ln_post
        gain = (last.var(1, correction=0) + norm.eps).rsqrt()
        embedding = norm(last) @ self.visual.proj
        paths = list((torch.stack([path.float() for path in direct], dim=1) @ self.projection.T).unbind(1))
        early = 1 + 2 * (self.block + 1)
        late = [path for pair in zip(reads["heads"], paths[early:], strict=True) for path in pair]
        scaled = torch.stack([*paths[:early], *late], dim=1) * gain[:, None, None]
        shift = self.shift.expand(len(z), 1, -1)
        return {
            "activation": z[:, 1:],
            "query_activation": z[:, 0],
            "attention": torch.cat(reads["attention"], dim=1),
            "scale": torch.stack(reads["scale"], dim=1),
            "gain": gain,
            "part": torch.cat([scaled, shift], dim=1),
            "stream": torch.stack(reads["stream"], dim=1),
            "embedding": embedding,
        }

    def rebuild(self, features: Mapping[str, Tensor]) -> Float[Tensor, "view embed"]:
        """Sum the pairs and the rest."""
        trace = view_trace({name: values.float() for name, values in features.items()}, None)
        rest = other_paths(trace, self.readout)
        assert rest is not None
        return sum_pairs(coefficients(trace, self.readout), self.readout) + rest

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

    def without_reference(self) -> "VitTower":
        """Return the same tower. It runs open_clip's own layers, so there are no weights to free."""
        return dataclasses.replace(self, has_reference=False)


class Vit(Family):
    """The family of ViT-B/32, ViT-L/14 and other vision transformers that read out the class token."""

    requirement = (
        "a vision transformer with a class token that is read out (pool_type tok) and ordinary blocks, such as ViT-B-32"
    )

    def accepts(self, config: dict[str, Any]) -> bool:
        """Return True for a vision transformer of open_clip with a class token and without special blocks."""
        vision = config["vision_cfg"]
        return (
            "timm_model_name" not in vision
            and isinstance(vision.get("layers", 12), int)
            and vision.get("pool_type", "tok") == "tok"
            and vision.get("block_type") in (None, "default")
            and not any(vision.get(name) for name in UNSUPPORTED)
        )

    def recognises(self, visual: torch.nn.Module) -> bool:
        """Return True for a VisionTransformer with ordinary blocks that reads out the class token."""
        return (
            isinstance(visual, VisionTransformer)
            and visual.pool_type == "tok"
            and visual.attn_pool is None
            and all(isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks)
        )

    def token_size(self, visual: VisionTransformer) -> int:
        """Return the side of a patch in pixels."""
        return visual.patch_size[0]

    def open_tower(
        self,
        visual: VisionTransformer,
        preprocessing: Preprocessing,
        precision: Precision,
        image_size: int | None,
        block: int | None,
        shown_block: int | None,
    ) -> VitTower:
        """Return a tower that shares all weights with `visual`, except the positional embedding for another image size.

        block: block whose MLP neurons are decomposed; the heads of all later blocks read them. shown_block: must be None.
        Raises NadpipeError if there is no such block, no head reads it, or the size is not a whole number of tokens.
        """
        blocks = len(visual.transformer.resblocks)
        if shown_block is not None:
            raise NadpipeError(
                "segmentation.block: blocks of a vision transformer have other neurons; set null and model.block"
            )
        if blocks < 2:
            raise NadpipeError("model: the vision transformer has one block, so no head reads neurons; choose a deeper one")
        block = blocks - 2 if block is None else block
        if not 0 <= block < blocks - 1:
            raise NadpipeError(
                f"model.block: no head reads the neurons of block {block} of {blocks}; choose one from 0 to {blocks - 2}"
            )
        if image_size is not None and image_size != preprocessing.image_size:
            visual = _resized(visual, image_size)
            preprocessing = dataclasses.replace(preprocessing, image_size=image_size)
        projection, shift = _last_norm(visual)
        return VitTower(
            visual=visual,
            has_reference=True,
            preprocessing=preprocessing,
            weights=make_readout(visual, block, projection),
            projection=projection.float(),
            shift=shift.float(),
            precision=precision,
            block=block,
            device=visual.positional_embedding.device,
        )


FAMILY = Vit()


def make_readout(visual: VisionTransformer, block: int, projection: Float[Tensor, "embed stream"]) -> Readout:
    """Return the weights of all heads after a block, with the norms folded in. projection: result of `_last_norm`."""
    blocks = visual.transformer.resblocks
    value, value_bias, output, layer = [], [], [], []
    bias = torch.zeros_like(projection[0])
    for index, late in enumerate(blocks[block + 1 :], start=block + 1):
        module, norm = late.attn, late.ln_1
        heads = module.num_heads
        weight = module.in_proj_weight.chunk(3)[2].double()
        value.append(_centred(weight * norm.weight.double()).unflatten(0, (heads, -1)))
        value_bias.append((weight @ norm.bias.double() + module.in_proj_bias.chunk(3)[2].double()).unflatten(0, (heads, -1)))
        scale = _layer_scale(late.ls_1, projection)
        written = projection * scale @ module.out_proj.weight.double()
        output.append(written.unflatten(1, (heads, -1)).transpose(0, 1))
        bias = bias + scale * module.out_proj.bias.double()
        layer += [index] * heads
    mlp = blocks[block].mlp.c_proj
    write = mlp.weight.double() * _layer_scale(blocks[block].ls_2, projection)[:, None]
    return Readout(
        value=torch.cat(value).float(),
        value_bias=torch.cat(value_bias).float(),
        output=torch.cat(output).float().transpose(0, 1).contiguous().transpose(0, 1),  # the layout of W_O: see joint_output
        output_bias=(projection @ bias).float(),
        layer=torch.tensor(layer, device=projection.device),
        write=write.T.float().contiguous(),
        scaled=True,
    )


def _last_norm(visual: VisionTransformer) -> tuple[Float[Tensor, "embed stream"], Float[Tensor, " embed"]]:
    """Return what maps the class token divided by σ to the embedding, and what β adds, in float64."""
    weight = visual.proj.detach().double().T
    return _centred(weight * visual.ln_post.weight.double()), weight @ visual.ln_post.bias.double()


def _centred(weight: Float[Tensor, "row stream"]) -> Float[Tensor, "row stream"]:
    """Fold the centring of a norm into the weight behind it: W (I - 1/D)."""
    return weight - weight.mean(1, keepdim=True)


def _layer_scale(module: torch.nn.Module, like: Float[Tensor, "row stream"]) -> Float[Tensor, " stream"]:
    """Return the factors of a LayerScale, or ones, in float64."""
    return module.gamma.double() if isinstance(module, LayerScale) else torch.ones_like(like[0])


def _class_attention(module: torch.nn.MultiheadAttention, normed: Float[Tensor, "view key stream"]) -> Tensor:
    """Compute the class token's row of attention, per head: softmax_t(q_h · k_ht / sqrt(d)).

    As in the pool of CLIP-ResNet, the query is pulled back through W_K. Its product with b_K is the same for all tokens and
    cancels in the softmax.
    """
    weight, bias = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    query = F.linear(normed[:, 0], weight[0], bias[0]).unflatten(1, (module.num_heads, -1))
    pulled = torch.einsum("vhd,hds->vhs", query, weight[1].unflatten(0, (module.num_heads, -1)))
    return torch.softmax(pulled @ normed.transpose(1, 2) * query.shape[-1] ** -0.5, dim=2)


def _resized(visual: VisionTransformer, image_size: int) -> VisionTransformer:
    """Return a copy of a tower for images of another size, with an interpolated positional embedding; it shares all others.

    Raises NadpipeError if the size is not a whole number of tokens.
    """
    token = visual.patch_size[0]
    if image_size % token:
        raise NadpipeError(
            f"segmentation.crop: {image_size} pixels are not a whole number of tokens; choose a multiple of {token}"
        )
    positions = resize_tokens(visual.positional_embedding[None], image_size // token)[0]
    resized = copy.copy(visual)
    resized._parameters = {**visual._parameters, "positional_embedding": torch.nn.Parameter(positions, requires_grad=False)}
    return resized
