"""CLIP-ResNet through timm: the same trunk, and an attention pool of timm with learned or with rotary positions.

open_clip builds two forms. The trunk `resnet50_clip` ends in its own pool, which has learned positions. The trunk
`resnet50_clip_gap` ends without one if open_clip adds a pool: `abs_attn` with learned positions, or `rot_attn` with rotary
positions, which turn queries and keys and add nothing to the tokens. A linear projection behind the pool is part of W_O.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from open_clip.timm_model import TimmModel
from timm.layers import AttentionPool2d, RotAttentionPool2d
from timm.models.byobnet import ByobNet
from torch import Tensor

from nadpipe.circuit.attention import AttentionPool, at_grid
from nadpipe.circuit.readout import Readout
from nadpipe.errors import NadpipeError
from nadpipe.towers.clip_resnet import TOKEN, ResNetTower, choose_block, fold_batch_norms, resize_images, with_parameter
from nadpipe.towers.family import Family, Precision
from nadpipe.towers.preprocessing import Preprocessing

_TRUNK = re.compile(r"resnet(?:50|101|50x4|50x16|50x64)_clip(_gap)?(?:\.[a-z0-9_]+)?")
_ADDED_POOLS = ("abs_attn", "rot_attn")


class TimmResNet(Family):
    """The family of resnet50_clip, resnet101_clip, resnet50x4_clip, resnet50x16_clip and resnet50x64_clip of timm."""

    requirement = (
        "a CLIP-ResNet of timm with one attention pool, such as resnet50_clip with timm_pool token, or resnet50_clip_gap with "
        "timm_pool abs_attn or rot_attn, and at most a linear projection behind it"
    )

    def accepts(self, config: dict[str, Any]) -> bool:
        """Return True for a CLIP-ResNet of timm with one attention pool and without further layers that are not linear.

        A pool that open_clip adds to a trunk with a pool reads what the first pool attends to, so its tokens are not neurons.
        Without pool and projection, open_clip switches the trunk's pool off.
        """
        vision = config["vision_cfg"]
        trunk = _TRUNK.fullmatch(vision.get("timm_model_name") or "")
        pool, projection = vision.get("timm_pool", "avg"), vision.get("timm_proj", "linear") or ""
        if trunk is None or projection not in ("linear", "none", ""):
            return False
        if trunk[1]:
            return pool in _ADDED_POOLS
        return (pool, projection) in (("token", ""), ("token", "linear"), ("", "linear"))

    def recognises(self, visual: torch.nn.Module) -> bool:
        """Return True for a ByobNet of timm whose attention pool takes the mean as query."""
        if not (isinstance(visual, TimmModel) and isinstance(visual.trunk, ByobNet)):
            return False
        pool = visual.get_submodule(_pool_path(visual))
        return isinstance(pool, AttentionPool2d | RotAttentionPool2d) and pool.cls_token is None and pool.pool_type == "token"

    def token_size(self, visual: TimmModel) -> int:
        """Return the side of a spatial token in pixels, which is the same for all ResNets."""
        return TOKEN

    def open_tower(
        self,
        visual: TimmModel,
        preprocessing: Preprocessing,
        precision: Precision,
        image_size: int | None,
        block: int | None,
        shown_block: int | None,
    ) -> ResNetTower:
        """Return a tower with folded batch norms. It shares only the attention pool's weights with `visual`.

        block: the last block of the last stage, because the pool reads only this one. shown_block: block of the last stage.
        Raises NadpipeError if the last stage has no such block or the size is not a whole number of tokens.
        """
        native = preprocessing.image_size
        if native % TOKEN:
            raise NadpipeError(
                f"vision_cfg.image_size: {native} pixels are not a whole number of tokens; "
                f"choose a model with a multiple of {TOKEN}"
            )
        block = choose_block(len(visual.trunk.stages[-1]), block, shown_block)
        pool = at_grid(read_pool(visual), native // TOKEN)
        if image_size not in (None, native):
            preprocessing = resize_images(preprocessing, image_size)
            pool = at_grid(pool, image_size // TOKEN)
        reference = _with_positions(visual, pool)
        folded = fold_batch_norms(reference)
        return ResNetTower(
            stages=(folded.trunk.stem, *folded.trunk.stages[:-1]),
            blocks=folded.trunk.stages[-1],
            head=torch.nn.Sequential(folded.trunk.final_conv, folded.trunk.head, folded.head),
            reference=reference,
            preprocessing=preprocessing,
            pool=pool,
            precision=precision,
            block=block,
            device=pool.positional_embedding.device,
        )


FAMILY = TimmResNet()


def read_pool(visual: TimmModel) -> AttentionPool:
    """Return the weights of a tower's attention pool on the grid that timm made it for.

    Linear layers behind the pool are part of the readout's output.
    """
    pool = visual.get_submodule(_pool_path(visual))
    if pool.qkv is None:
        layers = [(layer.weight, layer.bias) for layer in (pool.q, pool.k, pool.v)]
    else:
        layers = list(zip(pool.qkv.weight.chunk(3), pool.qkv.bias.chunk(3), strict=True))
    query, key, value = (
        (weight.detach().unflatten(0, (pool.num_heads, -1)), bias.detach().unflatten(0, (pool.num_heads, -1)))
        for weight, bias in layers
    )
    weight, output_bias = _join_linear([pool.proj, *visual.head])
    output = weight.unflatten(1, (pool.num_heads, -1)).transpose(0, 1)
    layer = torch.zeros(pool.num_heads, dtype=torch.int64, device=output.device)
    readout = Readout(*value, output=output, output_bias=output_bias, layer=layer)
    if isinstance(pool, AttentionPool2d):
        return AttentionPool(readout, pool.pos_embed.detach(), *query, *key)
    side = pool.pos_embed.ref_feat_shape[0]  # of the grid whose distance between tokens is 1
    return AttentionPool(readout, value[0].new_zeros(side**2 + 1, pool.in_features), *query, *key, pool.pos_embed.bands * side)


def _pool_path(visual: TimmModel) -> str:
    """Return the name of the pool that open_clip added to the trunk, or of the trunk's own head."""
    return "head.pool" if "pool" in dict(visual.head.named_children()) else "trunk.head"


def _with_positions(visual: TimmModel, pool: AttentionPool) -> TimmModel:
    """Return a copy of a tower with a pool's positional embedding; it shares all other weights. Rotary positions have none."""
    path = _pool_path(visual)
    if isinstance(visual.get_submodule(path), RotAttentionPool2d):
        return visual
    resized = with_parameter(visual, f"{path}.pos_embed", pool.positional_embedding)
    resized.get_submodule(path).feat_size = (pool.grid, pool.grid)  # of the copy; timm interpolates from it
    return resized


def _join_linear(modules: Sequence[torch.nn.Module]) -> tuple[Float[Tensor, "embed value"], Float[Tensor, " embed"]]:
    """Return weight and bias of the linear layers among some modules as those of one layer, computed in float64."""
    first, *others = (module for module in modules if isinstance(module, torch.nn.Linear))
    weight = first.weight.detach().double()
    bias = torch.zeros_like(weight[:, 0]) if first.bias is None else first.bias.detach().double()
    for layer in others:
        further = layer.weight.detach().double()
        weight, bias = further @ weight, further @ bias
        bias = bias if layer.bias is None else bias + layer.bias.detach().double()
    return weight.float(), bias.float()
