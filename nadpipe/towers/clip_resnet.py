"""CLIP-ResNet: open_clip's ModifiedResNet, whose attention pool reads the last stage with a single query."""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from timm.layers import BatchNormAct2d
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nadpipe.circuit.attention import AttentionPool, at_grid
from nadpipe.circuit.readout import Readout
from nadpipe.errors import NadpipeError
from nadpipe.towers.devices import full_float32
from nadpipe.towers.family import Family, ImageTower, Precision
from nadpipe.towers.preprocessing import Preprocessing

Module = TypeVar("Module", bound=torch.nn.Module)
TOKEN = 32  # pixels of a spatial token's side: the product of all strides


@dataclasses.dataclass(frozen=True)
class ResNetTower(ImageTower):
    """An image tower with batch norms folded into its convolutions.

    stages: layers before the last stage. blocks: those of the last stage. head: the model's own attention pool, and the layers
    behind it. reference: the model's own layers.
    """

    stages: Sequence[Callable[[Tensor], Tensor]]
    blocks: torch.nn.Sequential
    head: torch.nn.Module
    reference: torch.nn.Module | None
    preprocessing: Preprocessing
    pool: AttentionPool
    precision: Precision
    block: int
    device: torch.device

    @property
    def readout(self) -> Readout:
        """Readout of the attention pool."""
        return self.pool.readout

    @property
    def grid(self) -> int:
        """Side of the square of spatial tokens."""
        return self.pool.grid

    def features(self, pixels: Float[Tensor, "view 3 row column"], tokens: bool = False) -> dict[str, Tensor]:
        """Compute z, the output of the chosen block of the last stage, and the embedding that the pool makes of it."""
        z = self._run(pixels, self.block)
        return {"activation": z, "embedding": self.pool_embedding(z)}

    def rebuild(self, features: Mapping[str, Tensor]) -> Float[Tensor, "view embed"]:
        """Compute the output of the attention pool."""
        return self.pool_embedding(features["activation"])

    def embedding(self, pixels: Float[Tensor, "view 3 row column"]) -> Float[Tensor, "view embed"]:
        """Compute the image embedding, not normalised. The attention pool runs in float32."""
        return self.pool_embedding(self._run(pixels, len(self.blocks) - 1))

    def pool_embedding(self, z: Float[Tensor, "view spatial neuron"]) -> Float[Tensor, "view embed"]:
        """Compute the output of the model's own attention pool in float32: the image embedding, not normalised."""
        side = round(z.shape[1] ** 0.5)
        return self.head(z.float().transpose(1, 2).unflatten(2, (side, side)))

    def reference_embedding(
        self, pixels: Float[Tensor, "view 3 row column"], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "view embed"]:
        """Compute the output of open_clip's own tower in float32 or float64, not normalised.

        Raises RuntimeError on a tower made by `without_reference`.
        """
        if self.reference is None:
            raise RuntimeError("this tower was made by without_reference")
        reference = self.reference if dtype == torch.float32 else copy.deepcopy(self.reference).to(dtype)
        with full_float32():
            return reference(pixels.to(self.device, dtype))

    def without_reference(self) -> "ResNetTower":
        """Return the same tower without the convolutions and batch norms that only the reference needs."""
        return dataclasses.replace(self, reference=None)

    def _run(self, pixels: Float[Tensor, "view 3 row column"], block: int) -> Float[Tensor, "view spatial neuron"]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"), full_float32():
            z = pixels.to(self.device)
            for stage in self.stages:
                z = stage(z)
            z = self.blocks[: block + 1](z)
        return z.float().flatten(2).transpose(1, 2)


class ClipResNet(Family):
    """The family of RN50, RN101, RN50x4, RN50x16, RN50x64 and ResNets of other sizes with the same structure."""

    requirement = "a CLIP-ResNet: an image tower that ends in a single-query attention pool, such as RN50 or RN50x16"

    def accepts(self, config: dict[str, Any]) -> bool:
        """Return True for a list of layer counts: only open_clip's ResNets have one."""
        vision = config["vision_cfg"]
        return "timm_model_name" not in vision and isinstance(vision.get("layers"), list | tuple)

    def recognises(self, visual: torch.nn.Module) -> bool:
        """Return True for a ModifiedResNet with an attention pool."""
        return isinstance(visual, ModifiedResNet) and isinstance(visual.attnpool, AttentionPool2d)

    def token_size(self, visual: ModifiedResNet) -> int:
        """Return the side of a spatial token in pixels, which is the same for all ResNets."""
        return TOKEN

    def open_tower(
        self,
        visual: ModifiedResNet,
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
        block = choose_block(len(visual.layer4), block, shown_block)
        pool = read_pool(visual.attnpool)
        if image_size is not None and image_size != preprocessing.image_size:
            preprocessing = resize_images(preprocessing, image_size)
            pool = at_grid(pool, image_size // TOKEN)
        reference = with_parameter(visual, "attnpool.positional_embedding", pool.positional_embedding)
        folded = fold_batch_norms(reference)
        return ResNetTower(
            stages=(folded.stem, folded.layer1, folded.layer2, folded.layer3),
            blocks=folded.layer4,
            head=folded.attnpool,
            reference=reference,
            preprocessing=preprocessing,
            pool=pool,
            precision=precision,
            block=block,
            device=pool.positional_embedding.device,
        )


FAMILY = ClipResNet()


def choose_block(blocks: int, block: int | None, shown_block: int | None) -> int:
    """Return the block of the last stage whose activations a tower takes, of a number of blocks.

    Raises NadpipeError if there is no such block, or if `block` is not the one that the pool reads.
    """
    if block not in (None, blocks - 1):
        raise NadpipeError(f"model.block: the attention pool of a CLIP-ResNet reads block {blocks - 1}; set null")
    block = blocks - 1 if shown_block is None else shown_block
    if not 0 <= block < blocks:
        raise NadpipeError(
            f"segmentation.block: the model's last stage has no block {block}; choose one from 0 to {blocks - 1}"
        )
    return block


def resize_images(preprocessing: Preprocessing, image_size: int) -> Preprocessing:
    """Return the preprocessing for images of another size. Raises NadpipeError if it is not a whole number of tokens."""
    if image_size % TOKEN:
        raise NadpipeError(
            f"segmentation.crop: {image_size} pixels are not a whole number of tokens; choose a multiple of {TOKEN}"
        )
    return dataclasses.replace(preprocessing, image_size=image_size)


def read_pool(module: AttentionPool2d) -> AttentionPool:
    """Return the weights of an attention pool; the tensors are the module's own."""
    heads = module.num_heads
    query, key, value = (
        (layer.weight.detach().unflatten(0, (heads, -1)), layer.bias.detach().unflatten(0, (heads, -1)))
        for layer in (module.q_proj, module.k_proj, module.v_proj)
    )
    output = module.c_proj.weight.detach().unflatten(1, (heads, -1)).transpose(0, 1)
    layer = torch.zeros(heads, dtype=torch.int64, device=output.device)
    readout = Readout(*value, output=output, output_bias=module.c_proj.bias.detach(), layer=layer)
    return AttentionPool(readout, module.positional_embedding.detach(), *query, *key)


def fold_batch_norms(module: Module) -> Module:
    """Return a copy of a module in which each batch norm is part of the convolution before it.

    The copy computes the same function with less work. Its convolutions have channels last in memory; all other weights are
    shared with the module, which stays unchanged. A batch norm of timm keeps the activation function that is part of it.
    """
    folded = copy.copy(module)
    folded._modules = {name: child and fold_batch_norms(child) for name, child in module._modules.items()}
    for (name, convolution), (next_name, norm) in itertools.pairwise(module.named_children()):
        if isinstance(convolution, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d):
            folded._modules[name] = fuse_conv_bn_eval(convolution, norm).to(memory_format=torch.channels_last)
            folded._modules[next_name] = norm.act if isinstance(norm, BatchNormAct2d) else torch.nn.Identity()
    return folded


def with_parameter(module: Module, path: str, value: Tensor) -> Module:
    """Return a copy of a module with another parameter. path: names of submodules and of the parameter, joined by dots.

    Submodules on the path are copied too. All other weights are shared.
    """
    first, _, rest = path.partition(".")
    copied = copy.copy(module)
    if rest:
        copied._modules = {**module._modules, first: with_parameter(module.get_submodule(first), rest, value)}
    else:
        copied._parameters = {**module._parameters, first: torch.nn.Parameter(value, requires_grad=False)}
    return copied
