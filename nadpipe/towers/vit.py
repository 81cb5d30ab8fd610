"""open_clip's VisionTransformer with a class token, as OpenAI, LAION, DataComp and others trained it.

The neurons are those of the MLP of one block, after the activation function. They write into the stream of tokens, which the
heads of all later blocks read at the class token (`nadpipe.towers.class_token`).
"""

import copy
import dataclasses
from typing import Any

import torch
from jaxtyping import Float
from open_clip.transformer import LayerScale, ResidualAttentionBlock, VisionTransformer
from torch import Tensor

from nadpipe.circuit.attention import resize_tokens
from nadpipe.towers.class_token import ClassTokenTower, open_class_token_tower
from nadpipe.towers.family import Family, Precision
from nadpipe.towers.preprocessing import Preprocessing
from nadpipe.towers.transformer import Attention, Block, Linear, Norm, Trunk, check_size

# settings of a vision config that put something non-linear behind the heads or the neurons, or change the attention
UNSUPPORTED = ("scale_attn", "scale_attn_inner", "scale_fc", "scale_heads", "scaled_cosine_attn", "qk_norm")


class Vit(Family):
    """The family of ViT-B/32, ViT-L/14 and other vision transformers that read out the class token."""

    requirement = "a vision transformer with ordinary blocks and a class token that is read out, such as ViT-B-32"

    def accepts(self, config: dict[str, Any]) -> bool:
        """Return True for a vision transformer of open_clip with a class token and without special blocks."""
        return has_ordinary_blocks(config) and not config["vision_cfg"].get("attentional_pool")

    def recognises(self, visual: torch.nn.Module) -> bool:
        """Return True for a VisionTransformer with ordinary blocks that reads out the class token."""
        return is_ordinary(visual) and visual.attn_pool is None

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
    ) -> ClassTokenTower:
        """Return a tower that shares all weights with `visual`, except the positional embedding for another image size.

        block: block whose MLP neurons are decomposed; the heads of all later blocks read them. shown_block: must be None.
        Raises NadpipeError if there is no such block, no head reads it, or the size is not a whole number of tokens.
        """
        visual, preprocessing = at_size(visual, preprocessing, image_size)
        projection = Linear(visual.proj.T)
        opened = (preprocessing, precision, block, shown_block)
        return open_class_token_tower(visual, read_trunk(visual), Norm.of(visual.ln_post), projection, *opened)


FAMILY = Vit()


def has_ordinary_blocks(config: dict[str, Any]) -> bool:
    """Return True for the config of a VisionTransformer with ordinary blocks that reads out one token."""
    vision = config["vision_cfg"]
    return (
        vision.get("timm_model_name") is None
        and isinstance(vision.get("layers", 12), int)
        and vision.get("pool_type", "tok") == "tok"
        and vision.get("block_type") in (None, "default")
        and not any(vision.get(name) for name in UNSUPPORTED)
    )


def is_ordinary(visual: torch.nn.Module) -> bool:
    """Return True for a VisionTransformer with ordinary blocks that reads out one token."""
    return (
        isinstance(visual, VisionTransformer)
        and visual.pool_type == "tok"
        and all(isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks)
    )


def read_trunk(visual: VisionTransformer) -> Trunk:
    """Return the weights of all blocks."""

    def embed(pixels: Float[Tensor, "view 3 row column"]) -> Float[Tensor, "view key stream"]:
        """Compute the stream before the first block. Patch dropout is for training and drops nothing here."""
        patches = visual.conv1(pixels).flatten(2).transpose(1, 2)
        token = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        return visual.ln_pre(torch.cat([token, patches], dim=1) + visual.positional_embedding)

    blocks = tuple(map(_read_block, visual.transformer.resblocks))
    return Trunk(embed, blocks, prefix=1, grid=round((len(visual.positional_embedding) - 1) ** 0.5))


def _read_block(block: ResidualAttentionBlock) -> Block:
    module, mlp = block.attn, block.mlp
    joined = Linear(module.in_proj_weight, module.in_proj_bias)
    scale_1, scale_2 = (layer.gamma if isinstance(layer, LayerScale) else None for layer in (block.ls_1, block.ls_2))
    return Block(
        norm_1=Norm.of(block.ln_1),
        attention=Attention(module.num_heads, (joined,), Linear.of(module.out_proj)),
        norm_2=Norm.of(block.ln_2),
        hidden=lambda x: mlp.gelu(mlp.c_fc(x)),
        output=Linear.of(mlp.c_proj),
        scale_1=scale_1,
        scale_2=scale_2,
    )


def at_size(
    visual: VisionTransformer, preprocessing: Preprocessing, image_size: int | None
) -> tuple[VisionTransformer, Preprocessing]:
    """Return a tower and its preprocessing for images of another size, with an interpolated positional embedding.

    The tower shares all other weights. Raises NadpipeError if the size is not a whole number of tokens.
    """
    if image_size is None or image_size == preprocessing.image_size:
        return visual, preprocessing
    token = visual.patch_size[0]
    check_size(image_size, token)
    positions = resize_tokens(visual.positional_embedding[None], image_size // token)[0]
    resized = copy.copy(visual)
    resized._parameters = {**visual._parameters, "positional_embedding": torch.nn.Parameter(positions, requires_grad=False)}
    return resized, dataclasses.replace(preprocessing, image_size=image_size)
