"""Load a CLIP model from any supported source."""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeAlias

import open_clip
import torch
from open_clip.transform import merge_preprocess_dict

from nadpipe.errors import NadpipeError, first_line, printable
from nadpipe.store.stamp import Stamp
from nadpipe.towers import clip_resnet, coca, map_head, timm_resnet, timm_trunk, timm_vit, vit
from nadpipe.towers.checkpoints import check_fit, read_state, state_sha256
from nadpipe.towers.devices import find_device
from nadpipe.towers.family import Family, ImageTower, Precision
from nadpipe.towers.model_config import MOST_TOKENS
from nadpipe.towers.preprocessing import Preprocessing, read_preprocessing
from nadpipe.towers.sources import display_name, find_checkpoint, read_config

FAMILIES: tuple[Family, ...] = (
    clip_resnet.FAMILY,
    timm_resnet.FAMILY,
    vit.FAMILY,
    timm_vit.FAMILY,
    map_head.FAMILY,
    coca.FAMILY,
)

Clip: TypeAlias = open_clip.CLIP | open_clip.CustomTextCLIP | open_clip.CoCa


@dataclasses.dataclass(frozen=True)
class Model:
    """A CLIP model on a device, in evaluation mode, in float32. Its weights never change.

    weights_sha256: hash of all weights. stamp: identity of the model for artifacts. config: open_clip's model config.
    """

    clip: Clip
    family: Family
    preprocessing: Preprocessing
    weights_sha256: str
    stamp: Stamp
    config: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.clip.parameters()).device

    @property
    def token_size(self) -> int:
        """Return the side of a spatial token of the image tower in pixels."""
        return self.family.token_size(self.clip.visual)

    def image_tower(
        self,
        precision: Precision = "float32",
        image_size: int | None = None,
        block: int | None = None,
        shown_block: int | None = None,
    ) -> ImageTower:
        """Return the image tower, ready to run.

        precision: of the layers up to the neurons; bfloat16 runs them under autocast.
        image_size: side of the square images in pixels; positional embeddings are interpolated. None for the model's own.
        block: block of the neurons, from 0; None for the last one that reaches a head that is read out.
        shown_block: block of a CLIP-ResNet whose activations are taken instead; None for `block`.
        Raises NadpipeError if the tower has no such block or the size is not a whole number of tokens.
        """
        return self.family.open_tower(self.clip.visual, self.preprocessing, precision, image_size, block, shown_block)


def load_model(architecture: str, pretrained: str | None = None, device: str = "auto") -> Model:
    """Load a model with an image tower of a supported family.

    architecture: a model name of open_clip, `hf-hub:org/name`, or the path of a model config JSON.
    pretrained: a pretrained tag of open_clip or a local file; None for `hf-hub:`.
    device: auto, cpu, cuda, cuda:1, ...
    Raises NadpipeError if the architecture is unknown or not supported, or if the weights do not fit it.
    """
    config, preprocess = read_config(architecture, lambda config: any(family.accepts(config) for family in FAMILIES))
    family = _find_family(architecture, config)
    build = _find_class(config)
    with torch.device("meta"):  # no memory, so a config that asks for more weights than the checkpoint has is refused
        outline = _build(build, architecture, config)
    if not family.recognises(outline.visual):
        built = family.describe(outline.visual)
        raise NadpipeError(f"{printable(architecture)}: image tower has {built}; nadpipe needs {_requirements()}")
    checkpoint = find_checkpoint(architecture, pretrained)
    preprocess = merge_preprocess_dict(preprocess, checkpoint.preprocessing)
    state, openai = read_state(checkpoint.path)
    if openai or checkpoint.quick_gelu:
        config["quick_gelu"] = True  # OpenAI trained with QuickGELU; another activation embeds texts differently
    preprocessing = read_preprocessing(architecture, config["vision_cfg"].get("image_size", 224), preprocess)
    tokens = (preprocessing.image_size // family.token_size(outline.visual)) ** 2
    if not 0 < tokens <= MOST_TOKENS:
        raise NadpipeError(
            f"{printable(architecture)}: model config: vision_cfg.image_size: {preprocessing.image_size} pixels are {tokens} "
            f"tokens; it should be from 1 to {MOST_TOKENS}"
        )
    check_fit(outline.state_dict(), state, checkpoint.path, architecture)
    clip = _build(build, architecture, config)
    clip.load_state_dict(state, strict=False)  # without num_batches_tracked, which old checkpoints lack
    weights = state_sha256(clip.state_dict())
    clip.eval().requires_grad_(False).to(find_device(device))
    return Model(
        clip=clip,
        family=family,
        preprocessing=preprocessing,
        weights_sha256=weights,
        stamp=Stamp(model=_identity(weights, config, preprocessing), architecture=display_name(architecture)),
        config=config,
    )


def _find_class(config: dict[str, Any]) -> Callable[..., Clip]:
    """Return open_clip's class for a model config, as open_clip chooses it."""
    if not config.get("custom_text") and not config["text_cfg"].get("hf_model_name"):
        return open_clip.CLIP
    return open_clip.CoCa if config.get("multimodal_cfg") else open_clip.CustomTextCLIP


def _build(build: Callable[..., Clip], architecture: str, config: dict[str, Any]) -> Clip:
    """Return open_clip's model for a config. Raises NadpipeError if open_clip cannot build it."""
    values = copy.deepcopy(config)
    values.pop("custom_text", None)  # it chooses the class
    for section, key in (("text_cfg", "hf_model_pretrained"), ("vision_cfg", "timm_model_pretrained")):
        if values[section].get(key.replace("pretrained", "name")):
            values[section][key] = False  # the checkpoint has all weights
    try:
        return build(**values)
    except Exception as error:  # open_clip checks nothing, so torch and timm raise errors of many types
        raise NadpipeError(
            f"{printable(architecture)}: open_clip cannot build this model config ({first_line(error)}); correct the config"
        ) from None


def _find_family(architecture: str, config: dict[str, Any]) -> Family:
    """Return the family that accepts a model config. Raises NadpipeError if none does."""
    for family in FAMILIES:
        if family.accepts(config):
            return family
    raise NadpipeError(f"{printable(architecture)}: image tower is {_describe(config)}; nadpipe needs {_requirements()}")


def _requirements() -> str:
    """Return what nadpipe needs, by family."""
    return ", or ".join(family.requirement for family in FAMILIES)


def _describe(config: dict[str, Any]) -> str:
    """Return the image tower of a model config in words."""
    vision = config["vision_cfg"]
    name, pool = vision.get("timm_model_name"), vision.get("timm_pool", "avg")
    if name is not None:
        if pool == "avg":
            return f"{name} with timm_pool avg, which has no heads that are read out"
        if timm_trunk.is_transformer(config):
            return f"{name} with timm_pool {pool or 'empty'}, which is neither token nor map"
        return f"{name} with {timm_trunk.describe_config(config)}"
    settings = [name for name in vit.UNSUPPORTED if vision.get(name)]
    settings += [f"pool_type {vision['pool_type']}"] if vision.get("pool_type", "tok") != "tok" else []
    pooler = vision.get("attentional_pool")
    settings += [f"attentional_pool {pooler}"] if isinstance(pooler, str) else []
    return " with ".join(["a vision transformer", ", ".join(settings)]) if settings else "unknown"


def _identity(weights_sha256: str, config: dict[str, Any], preprocessing: Preprocessing) -> str:
    """Return a hash of everything that an artifact's numbers depend on: weights, model config and preprocessing."""
    settings = json.dumps([config, dataclasses.asdict(preprocessing)], sort_keys=True)
    return hashlib.sha256(f"{settings}\n{weights_sha256}".encode()).hexdigest()
