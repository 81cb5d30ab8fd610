"""Vision transformers of timm as open_clip wraps them: their blocks, their sizes, and what nadpipe cannot read in them."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from jaxtyping import Float
from open_clip.timm_model import TimmModel
from timm.layers import Attention as PlainAttention
from timm.layers import AttentionRope, GluMlp, LayerScale, Mlp, SwiGLU
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block as PlainBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from nadpipe.towers.preprocessing import Preprocessing
from nadpipe.towers.transformer import Attention, Block, Linear, Norm, Trunk, check_size

_MODULES = ("vision_transformer", "vision_transformer_hybrid", "eva")  # of timm
_POST_NORM = ("eva02_enormous",)  # names that start like this have blocks with a norm behind attention and MLP


def is_transformer(config: dict[str, Any]) -> bool:
    """Return True if a model config names a vision transformer of timm that may be readable."""
    name = config["vision_cfg"].get("timm_model_name")
    if name is None or name.startswith(_POST_NORM) or config["vision_cfg"].get("timm_proj") == "mlp":
        return False
    return timm.models.is_model_in_modules(name.split(".")[0], _MODULES)


def describe_config(config: dict[str, Any]) -> str:
    """Return in words why `is_transformer` refuses a model config."""
    vision = config["vision_cfg"]
    if vision["timm_model_name"].startswith(_POST_NORM):
        return "a norm behind the heads and the MLP of each block"
    if vision.get("timm_proj") == "mlp":
        return "an MLP behind the pool (timm_proj mlp)"
    return "layers or a pool that nadpipe cannot read"


def find_problem(visual: torch.nn.Module) -> str | None:
    """Return what prevents nadpipe from reading the blocks of a tower, in words; None for nothing."""
    trunk: Any = getattr(visual, "trunk", visual)
    if not isinstance(visual, TimmModel) or type(trunk) not in (VisionTransformer, Eva):
        return f"the class {type(trunk).__name__}"
    rows, columns = trunk.patch_embed.grid_size
    checks = {
        "a grid of tokens that is not square": rows != columns,
        "other blocks": not all(type(block) in (PlainBlock, EvaBlock) for block in trunk.blocks),
        "positions that differ between blocks": getattr(trunk, "rope_mixed", False),
        "a head that is not linear": any(
            not isinstance(layer, torch.nn.Linear | torch.nn.Dropout | torch.nn.Identity) for layer in _head_layers(visual)
        ),
    }
    problems = [problem for problem, found in checks.items() if found]
    return next(iter(problems), None) or next(filter(None, map(_find_block_problem, trunk.blocks)), None)


def _find_block_problem(block: PlainBlock | EvaBlock) -> str | None:
    attention: Any = block.attn
    if type(attention) not in (PlainAttention, AttentionRope, EvaAttention):
        return f"attention of the class {type(attention).__name__}"
    if getattr(attention, "gate", None) is not None:
        return "a gate behind the heads"
    if getattr(attention, "num_kv_heads", attention.num_heads) != attention.num_heads:
        return "heads that share values"
    if type(block.mlp) not in (Mlp, GluMlp, SwiGLU):
        return f"an MLP of the class {type(block.mlp).__name__}"
    norms = [block.norm1, block.norm2, *(norm for norm in (attention.norm,) if not isinstance(norm, torch.nn.Identity))]
    return None if all(map(is_norm, norms)) else "norms without means or biases"


def is_norm(module: torch.nn.Module) -> bool:
    """Return True for a LayerNorm with γ and β."""
    return isinstance(module, torch.nn.LayerNorm) and module.weight is not None and module.bias is not None


def _head_layers(visual: TimmModel) -> Iterator[torch.nn.Module]:
    """Yield the layers behind the pool, in order."""
    yield visual.trunk.head
    yield from visual.head


def read_projection(visual: TimmModel) -> Linear | None:
    """Return the linear layers behind the pool as one; None for none."""
    layers = [layer for layer in _head_layers(visual) if isinstance(layer, torch.nn.Linear)]
    if not layers:
        return None
    weight, bias = layers[0].weight.double(), Linear.of(layers[0]).double_bias()
    for layer in layers[1:]:
        weight, bias = layer.weight.double() @ weight, layer.weight.double() @ bias + Linear.of(layer).double_bias()
    return Linear(weight.float(), bias.float())


def token_size(visual: TimmModel) -> int:
    """Return the side of a spatial token in pixels."""
    return visual.trunk.patch_embed.feat_ratio(as_scalar=True)


def at_size(visual: TimmModel, preprocessing: Preprocessing, image_size: int | None) -> tuple[TimmModel, Preprocessing]:
    """Return a tower and its preprocessing for images of another size, with positions as timm computes them.

    The tower shares all weights but the positions. timm's default size of an architecture may differ from the model config's.
    Raises NadpipeError if the size is not a whole number of tokens.
    """
    if image_size is not None and image_size != preprocessing.image_size:
        check_size(image_size, token_size(visual))
        preprocessing = dataclasses.replace(preprocessing, image_size=image_size)
    size = (preprocessing.image_size, preprocessing.image_size)
    if tuple(visual.trunk.patch_embed.img_size) == size:
        return visual, preprocessing
    shared = {id(parameter): parameter for parameter in visual.parameters()}
    resized = copy.deepcopy(visual, shared)
    resized.set_input_size(size)
    return resized.requires_grad_(False), preprocessing


def read_trunk(visual: Any) -> Trunk:
    """Return the weights of all blocks of a tower without problems."""
    trunk: Any = visual.trunk
    rotation, rope = None, getattr(trunk, "rope", None)
    if rope is not None:
        cached = hasattr(rope, "feat_shape") and not trunk.dynamic_img_size
        rotation = rope.get_embed() if cached else rope.get_embed(shape=trunk.patch_embed.grid_size)

    def embed(pixels: Float[Tensor, "view 3 row column"]) -> Float[Tensor, "view key stream"]:
        """Compute the stream before the first block. Patch dropout is for training and drops nothing here."""
        embedded = trunk._pos_embed(trunk.patch_embed(pixels))
        return trunk.norm_pre(embedded[0] if isinstance(embedded, tuple) else embedded)

    blocks = tuple(_read_block(block, rotation, trunk.num_prefix_tokens) for block in trunk.blocks)
    return Trunk(embed, blocks, prefix=trunk.num_prefix_tokens, grid=trunk.patch_embed.grid_size[0])


def _read_block(block: Any, rotation: Float[Tensor, "spatial rotation"] | None, prefix: int) -> Block:
    module: Any = block.attn
    mlp: Any = block.mlp
    plain = isinstance(block, PlainBlock)
    scales = (block.ls1, block.ls2) if plain else (block.gamma_1, block.gamma_2)
    scale_1, scale_2 = (scale.gamma if isinstance(scale, LayerScale) else scale for scale in scales)
    norms = [None if isinstance(norm, torch.nn.Identity) else norm for norm in (module.q_norm, module.k_norm, module.norm)]
    attention = Attention(
        heads=module.num_heads,
        projections=_read_projections(module),
        output=Linear.of(module.proj),
        inner=None if norms[2] is None else Norm.of(norms[2]),
        query_norm=norms[0],
        key_norm=norms[1],
        rotation=rotation,
        half=getattr(module, "rotate_half", False),
        prefix=prefix,
    )
    return Block(
        norm_1=Norm.of(block.norm1),
        attention=attention,
        norm_2=Norm.of(block.norm2),
        hidden=_read_hidden(mlp),
        output=Linear.of(mlp.fc2),
        scale_1=scale_1 if isinstance(scale_1, Tensor) else None,
        scale_2=scale_2 if isinstance(scale_2, Tensor) else None,
    )


def _read_projections(module: Any) -> tuple[Linear, ...]:
    """Return the layers of queries, keys and values of a module of attention, joined or apart."""
    if module.qkv is None:
        return tuple(map(Linear.of, (module.q_proj, module.k_proj, module.v_proj)))
    if getattr(module, "q_bias", None) is None:
        return (Linear.of(module.qkv),)
    return (Linear(module.qkv.weight, torch.cat([module.q_bias, module.k_bias, module.v_bias])),)


def _read_hidden(mlp: Mlp | GluMlp | SwiGLU) -> Callable[[Tensor], Tensor]:
    """Return the layers of an MLP before its second matrix: activation, gate and norm."""
    return functools.partial(_hidden, mlp)


def _hidden(mlp: Mlp | GluMlp | SwiGLU, x: Float[Tensor, "view key stream"]) -> Float[Tensor, "view key neuron"]:
    if isinstance(mlp, SwiGLU):
        return mlp.norm(mlp.act(mlp.fc1_g(x)) * mlp.fc1_x(x))
    hidden = mlp.fc1(x)
    if isinstance(mlp, Mlp):
        return mlp.norm(mlp.act(hidden))
    first, second = hidden.chunk(2, dim=-1)
    return mlp.norm(first * mlp.act(second) if mlp.gate_last else mlp.act(first) * second)
