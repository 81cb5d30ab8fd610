"""Check open_clip's model configs before open_clip sees them.

A model config selects code: names of timm models, of tokenizers and of text encoders. Only names and options that load no code
of others are accepted. Sizes have bounds, so that a config of a few lines cannot take all memory.
"""

import functools
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import open_clip
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from nadpipe.errors import NadpipeError, printable
from nadpipe.store.files import read_regular

LARGEST_CONFIG = 2**20  # bytes
MOST_TOKENS = 16_384  # spatial tokens of an image
_TOKENS_OF_CLIP = 49_408  # vocabulary of open_clip's own tokenizer
_STRIDE = 32  # of a ResNet


def _check_sizes(value: Any, largest: int, length: int) -> Any:
    """Return an integer from 1 to `largest`, or a list of `length` such integers. Raises ValueError for other values."""
    sizes = value if isinstance(value, list) and len(value) == length else [value]
    if not all(type(size) is int and 1 <= size <= largest for size in sizes):
        raise ValueError(f"it should be an integer from 1 to {largest}, or a list of {length} such integers")
    return value


def _check_image_size(value: Any) -> Any:
    return _check_sizes(value, 4096, 2)


def _check_layers(value: Any) -> Any:
    return _check_sizes(value, 256, 4)


def _check_text_encoder(name: str) -> str:
    if name not in _text_encoders():
        raise ValueError(f"it should be a text encoder that open_clip's own configs name: {', '.join(_text_encoders())}")
    return name


@functools.cache
def _text_encoders() -> list[str]:
    """Return the names of the text encoders in open_clip's own model configs."""
    texts = [open_clip.get_model_config(name)["text_cfg"] for name in open_clip.list_models()]
    return sorted({text["hf_model_name"] for text in texts if "hf_model_name" in text})


Width = Annotated[int, Field(ge=1, le=16_384)]
Heads = Annotated[int, Field(ge=1, le=1024)]
Layers = Annotated[int, Field(ge=1, le=256)]
Length = Annotated[int, Field(ge=1, le=4096)]
TokenId = Annotated[int, Field(ge=0, lt=2_000_000)]
Vocabulary = Annotated[int, Field(ge=1, le=2_000_000)]
Ratio = Annotated[float, Field(gt=0, le=64)]
Scale = Annotated[float, Field(ge=-1000, le=1000)]
Rate = Annotated[float, Field(ge=0, lt=1)]
TimmName = Annotated[str, Field(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)?$", max_length=100)]  # no hf-hub:, no local-dir:
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\w./ -]+$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=(), allow_inf_nan=False)


class _Activation(_Section):
    approximate: Literal["none", "tanh"] = "none"


class _Norm(_Section):
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-5


class _TokenizerOptions(_Section):
    clean: Literal["lower", "whitespace", "canonicalize"] = "lower"
    strip_sep_token: bool = False


class _Tower(_Section):
    """Keys of image towers and text towers."""

    mlp_ratio: Ratio = 4.0
    ls_init_value: Scale | None = None
    final_ln_after_pool: bool = False
    output_tokens: bool = False
    act_kwargs: _Activation | None = None
    norm_kwargs: _Norm | None = None
    block_type: Literal["default", "custom"] | None = None
    qk_norm: bool = False
    scaled_cosine_attn: bool = False
    scale_heads: bool = False
    scale_attn_inner: bool = False
    scale_attn: bool = False
    scale_fc: bool = False


class _Vision(_Tower):
    """Keys of image towers. Without a timm model, a list of layers is a ResNet and a number is a vision transformer."""

    layers: Annotated[Any, AfterValidator(_check_layers)] = 12
    width: Width = 768
    head_width: Width = 64
    patch_size: Length | None = 16
    image_size: Annotated[Any, AfterValidator(_check_image_size)] = 224
    patch_dropout: Rate = 0.0
    attentional_pool: Literal[True, False, "parallel", "cascade"] = False
    attn_pooler_queries: Length = 256
    attn_pooler_heads: Heads = 8
    no_ln_pre: bool = False
    pos_embed_type: Literal["learnable", "sin_cos_2d"] = "learnable"
    pool_type: Literal["tok", "avg", "none"] = "tok"
    timm_model_name: TimmName | None = None
    timm_model_pretrained: bool = False
    timm_pool: Annotated[str, Field(pattern=r"^[a-z_]*$", max_length=20)] = "avg"
    timm_proj: Literal["linear", "mlp", "none", ""] | None = "linear"
    timm_proj_bias: bool = False
    timm_drop: Rate = 0.0
    timm_drop_path: Rate | None = None

    @model_validator(mode="after")
    def _check_sizes(self) -> "_Vision":
        """Raise ValueError if sizes do not fit each other. timm checks those of its own models."""
        if self.timm_model_name is not None:
            return self
        sides = self.image_size if isinstance(self.image_size, list) else [self.image_size] * 2
        is_resnet = isinstance(self.layers, list)
        channels = self.width * _STRIDE if is_resnet else self.width
        heads = channels // self.head_width
        if heads == 0 or channels % heads:
            raise ValueError(f"head_width: {self.head_width} does not divide {channels} channels into heads")
        if is_resnet and any(side % _STRIDE for side in sides):
            raise ValueError(f"image_size: {self.image_size} is not a multiple of {_STRIDE}")
        if not is_resnet and (self.patch_size is None or self.patch_size > min(sides)):
            raise ValueError(f"patch_size: {self.patch_size} does not fit image_size {self.image_size}")
        token = _STRIDE if is_resnet else self.patch_size
        if (sides[0] // token) * (sides[1] // token) > MOST_TOKENS:
            raise ValueError(f"image_size: {self.image_size} has more than {MOST_TOKENS} tokens")
        return self


class _Text(_Tower):
    """Keys of text towers."""

    context_length: Length = 77
    vocab_size: Vocabulary = 49_408
    hf_tokenizer_name: Name | None = None
    tokenizer_mode: None = None
    tokenizer_kwargs: _TokenizerOptions | None = None
    width: Width = 512
    heads: Heads = 8
    layers: Layers = 12
    embed_cls: bool = False
    pad_id: TokenId = 0
    eos_id: TokenId = 2
    no_causal_mask: bool = False
    pool_type: Literal["argmax", "eos", "first", "last", "none"] = "argmax"
    proj_bias: bool = False
    proj_type: Literal["linear", "none"] = "linear"
    hf_model_name: Annotated[str, AfterValidator(_check_text_encoder)] | None = None
    hf_model_pretrained: bool = True
    hf_proj_type: Literal["linear", "mlp"] | None = "mlp"
    hf_pooler_type: Annotated[str, Field(pattern=r"^[a-z_]+$", max_length=50)] | None = "mean_pooler"

    @model_validator(mode="after")
    def _check_sizes(self) -> "_Text":
        """Raise ValueError if sizes do not fit each other, or if the tokenizer does not fit."""
        if self.hf_model_name is None and self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width {self.width}")
        return self


class _ClipText(_Text):
    """Keys of the text tower that embeds texts."""

    @model_validator(mode="after")
    def _check_tokenizer(self) -> "_ClipText":
        """Raise ValueError if the tokenizer does not fit the vocabulary, or does not take the options."""
        if self.hf_tokenizer_name is not None:
            return self
        if self.hf_model_name is None and self.vocab_size < _TOKENS_OF_CLIP:
            raise ValueError(
                f"vocab_size: {self.vocab_size} is less than the {_TOKENS_OF_CLIP} tokens of open_clip's tokenizer"
            )
        if self.tokenizer_kwargs is not None and "strip_sep_token" in self.tokenizer_kwargs.model_fields_set:
            raise ValueError("tokenizer_kwargs.strip_sep_token: open_clip's tokenizer does not take it")
        return self


class _Multimodal(_Text):
    """Keys of CoCa's text decoder, which nadpipe never runs."""

    dim_head: Width = 64
    n_queries: Length = 256
    attn_pooler_heads: Heads = 8


class _Clip(_Section):
    """Keys of a model config."""

    embed_dim: Width
    vision_cfg: _Vision
    text_cfg: _ClipText
    multimodal_cfg: _Multimodal | None = None
    quick_gelu: bool = False
    custom_text: bool = False
    init_logit_scale: Scale = 0.0
    init_logit_bias: Scale | None = None
    nonscalar_logit_scale: bool = False
    pad_id: TokenId = 0

    @model_validator(mode="after")
    def _check_pooler(self) -> "_Clip":
        """Raise ValueError if the heads of an attentional pooler do not divide its width."""
        heads = self.vision_cfg.attn_pooler_heads
        if self.vision_cfg.attentional_pool and self.embed_dim % heads:
            raise ValueError(f"vision_cfg.attn_pooler_heads: {heads} does not divide embed_dim {self.embed_dim}")
        return self

    @model_validator(mode="after")
    def _check_decoder(self) -> "_Clip":
        """Raise ValueError unless towers return tokens to a text decoder, and text towers to nothing else."""
        if self.multimodal_cfg is not None and not (self.vision_cfg.output_tokens and self.text_cfg.output_tokens):
            raise ValueError("multimodal_cfg: a text decoder needs output_tokens true in vision_cfg and text_cfg")
        if self.multimodal_cfg is None and self.text_cfg.output_tokens:
            raise ValueError("text_cfg.output_tokens: only a model with multimodal_cfg takes tokens")
        return self


Channels = Annotated[list[Annotated[float, Field(ge=-1000, le=1000)]], Field(min_length=3, max_length=3)]
Deviations = Annotated[list[Annotated[float, Field(gt=0, le=1000)]], Field(min_length=3, max_length=3)]


class _Preprocessing(_Section):
    """Keys of `preprocess_cfg`. open_clip ignores further keys, and those that are null."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)

    size: Annotated[Any, AfterValidator(_check_image_size)] = 224
    mode: Literal["RGB"] = "RGB"
    mean: Channels = Field(default_factory=list)
    std: Deviations = Field(default_factory=list)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill_color: Annotated[int, Field(ge=0, le=255)] = 0


def read_model_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a model config with its preprocessing from a JSON file, as open_clip writes it or as the hub has it.

    Raises NadpipeError if the file is not JSON, or as `check_model_config` does.
    """
    content = read_regular(path, LARGEST_CONFIG, "model config")
    try:
        parsed = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else printable(str(error))
        raise NadpipeError(
            f"{printable(str(path))}: not a readable model config ({reason}); give an open_clip model config as JSON"
        ) from None
    config = parsed.get("model_cfg", parsed) if isinstance(parsed, dict) else {}
    preprocessing = parsed.get("preprocess_cfg", {}) if isinstance(parsed, dict) else {}
    if isinstance(preprocessing, dict):
        preprocessing = {name: value for name, value in preprocessing.items() if value is not None}
    check_model_config(config, str(path))
    _check(_Preprocessing, preprocessing, f"{printable(str(path))}: preprocess_cfg")
    return config, preprocessing


def check_model_config(config: Any, source: str) -> None:
    """Raise NadpipeError unless open_clip can build a model config without code of others and with bounded sizes.

    source: name or path of the config, for messages.
    """
    _check(_Clip, config, f"{printable(source)}: model config")


def _check(section: type[BaseModel], values: Any, source: str) -> None:
    """Raise NadpipeError with the first invalid key of a section and the number of others."""
    if not isinstance(values, dict):
        raise NadpipeError(f"{source} is not a JSON object; give an open_clip model config")
    try:
        section.model_validate(values)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        missing = [str(details["loc"][-1]) for details in errors if details["type"] == "missing" and len(details["loc"]) == 1]
        if missing:
            raise NadpipeError(f"{source} lacks {', '.join(missing)}; give an open_clip model config") from None
        first, *others = errors
        reason = re.sub(r"^(Value error, |(Input|String) (?=should))", "", first["msg"])
        reason = reason.replace("Extra inputs are not permitted", "unknown key, or one that nadpipe does not pass on")
        reason = f"it {reason}" if reason.startswith("should") else reason
        location = printable(".".join(str(step)[:50] for step in first["loc"]))
        key = f"{location}{'.' if re.match('[a-z_.]+: ', reason) else ': '}" if location else ""
        more = f" ({len(others)} more errors)" if others else ""
        raise NadpipeError(f"{source}: {key}{reason}{more}; correct the config") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)[:50]!r} occurs twice")
    return values


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")
