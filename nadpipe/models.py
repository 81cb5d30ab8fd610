"""The only module that knows open_clip: load a CLIP-ResNet from any supported source, its trunk, its pool, its texts.

Weights come from a pretrained tag of open_clip, from the hub (`hf-hub:org/name`), or from a local file: safetensors, a
plain state dict, or the TorchScript archive that OpenAI published. Nothing but tensors is ever unpickled.
"""

import contextlib
import copy
import dataclasses
import hashlib
import itertools
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from jaxtyping import Float, Int, UInt8
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf, get_pretrained_cfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from open_clip.transformer import TextTransformer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nadpipe.artifacts import Stamp
from nadpipe.attnpool import AttentionPool, at_grid
from nadpipe.devices import find_device
from nadpipe.errors import NadpipeError

_NEEDS = "nadpipe needs a CLIP-ResNet: an image tower that ends in a single-query attention pool, such as RN50 or RN50x16"
_HUB = "hf-hub:"
TOKEN = 32  # pixels of a spatial token's side: what all strides of a CLIP-ResNet multiply to
_OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How the model wants its pixels."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str

    def normalise(self, pixels: UInt8[Tensor, "view row column 3"]) -> Float[Tensor, "view 3 row column"]:
        """What the network sees of 8-bit pixels; in memory the channels stay last, as convolutions like them best."""
        mean, std = (torch.tensor(values, device=pixels.device) for values in (self.mean, self.std))
        return pixels.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)


@dataclasses.dataclass(frozen=True)
class Model:
    """A loaded CLIP-ResNet on a device, in evaluation mode, float32."""

    clip: torch.nn.Module
    tokenize: Callable[..., Tensor]  # texts, and the context length where it is not the model's
    preprocessing: Preprocessing
    stamp: Stamp
    config: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.clip.parameters()).device

    def encode_image(self, pixels: Float[Tensor, "view 3 row column"]) -> Float[Tensor, "view embed"]:
        """Image embeddings by open_clip's own code in float32, not normalised; before `image_tower` took the tower over."""
        with _full_float32():
            return self.clip.encode_image(pixels)

    def embed_texts(self, texts: list[str], batch_size: int | None = None) -> Float[Tensor, "text embed"]:
        """Text embeddings, not normalised, `batch_size` texts a step (None: all at once), those of like length together.

        Raises NadpipeError for a text that is longer than the model's context, which the tokenizer would cut silently.
        """
        tokens = self.tokenize(texts)
        _check_length(texts, tokens, self.tokenize)
        end = _end_token(self.clip, tokens)
        order = torch.arange(len(texts)) if end is None else end.argsort(stable=True)
        parts = []
        for rows in order.split(batch_size or len(texts)):
            some = tokens[rows].to(self.device)
            parts.append(self.clip.encode_text(some) if end is None else _encode_to_end(self.clip, some, end[rows]))
        return torch.cat(parts)[order.argsort()]


def _full_float32() -> contextlib.AbstractContextManager:
    """float32 means float32 on a GPU too, whose convolutions would take TF32."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


@dataclasses.dataclass(frozen=True)
class ImageTower:
    """The image tower of a model, made fast; `image_tower` makes it."""

    visual: torch.nn.Module
    device: torch.device
    precision: Literal["float32", "bfloat16"]

    def activations(
        self, pixels: Float[Tensor, "view 3 row column"], block: int | None = None
    ) -> Float[Tensor, "view spatial neuron"]:
        """z, the spatial activations row by row, in float32 whatever the precision.

        block: of the last stage, counted from 0, whose output is taken; the last one unless given.
        """
        visual = self.visual
        last = visual.layer4 if block is None else visual.layer4[: block + 1]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"), _full_float32():
            z = visual.stem(pixels.to(self.device))
            for stage in (visual.layer1, visual.layer2, visual.layer3, last):
                z = stage(z)
        return z.float().flatten(2).transpose(1, 2)

    def pool(self, z: Float[Tensor, "view spatial neuron"]) -> Float[Tensor, "view embed"]:
        """The model's own attention pool, in float32: the image embedding, not normalised."""
        side = round(z.shape[1] ** 0.5)
        return self.visual.attnpool(z.float().transpose(1, 2).unflatten(2, (side, side)))


def image_tower(model: Model, precision: Literal["float32", "bfloat16"] = "float32") -> ImageTower:
    """The model's image tower with batch norms folded into the convolutions and channels last in memory.

    precision: bfloat16 runs the convolutions under autocast. The model's own tower is changed in place, so that the
    weights are not held twice.
    """
    visual = fold_batch_norms(model.clip.visual).to(memory_format=torch.channels_last)
    return ImageTower(visual, model.device, precision)


def fold_batch_norms(module: torch.nn.Module) -> torch.nn.Module:
    """Put every batch norm that directly follows a convolution into its weights, in place; the same function, less work."""
    for parent in module.modules():
        children = list(parent.named_children())
        for (name, convolution), (next_name, norm) in itertools.pairwise(children):
            if isinstance(convolution, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, next_name, torch.nn.Identity())
    return module


def load_model(architecture: str, pretrained: str | None, device: str) -> Model:
    """Load a CLIP-ResNet.

    architecture: a model name of open_clip, `hf-hub:org/name`, or the path of a model config JSON. pretrained: a
    pretrained tag of open_clip or a local file; None for `hf-hub:`. device: auto, cpu, cuda, cuda:1, ….
    Raises NadpipeError when the architecture is unknown or no CLIP-ResNet, or the weights do not fit it.
    """
    config, preprocess = _read_config(architecture)
    checkpoint, extra = _find_checkpoint(architecture, pretrained)
    preprocess = merge_preprocess_dict(preprocess, extra.get("preprocess", {}))
    _refuse_other_towers(architecture, config)
    state, openai = read_state(checkpoint)
    if openai or extra.get("quick_gelu"):
        config["quick_gelu"] = True  # OpenAI trained with QuickGELU; other activations give other texts
    custom_text = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    preprocessing = _preprocessing(architecture, config, preprocess)
    try:
        clip = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**copy.deepcopy(config))
    except TypeError as error:
        raise NadpipeError(f"{architecture}: open_clip cannot build this model config ({error})") from None
    if not isinstance(clip.visual, ModifiedResNet) or not isinstance(clip.visual.attnpool, AttentionPool2d):
        raise NadpipeError(f"{architecture}: image tower is {type(clip.visual).__name__}; {_NEEDS}")
    _load_state(clip, state, checkpoint, architecture)
    clip.eval().requires_grad_(False).to(find_device(device))
    return Model(
        clip=clip,
        tokenize=_tokenizer(config["text_cfg"]),
        preprocessing=preprocessing,
        stamp=Stamp(model=_identity(clip, config, preprocessing), architecture=_name(architecture)),
        config=config,
    )


def last_blocks(model: Model) -> int:
    """Number of blocks in the last stage of the image tower."""
    return len(model.clip.visual.layer4)


def set_image_size(model: Model, size: int) -> None:
    """Make the model, in place, take square images of `size` pixels: its positional embedding is interpolated to their grid.

    Raises NadpipeError for a size that is no whole number of tokens.
    """
    if size % TOKEN:
        raise NadpipeError(f"images of {size} pixels: the side must be a multiple of {TOKEN}, the pixels of one token")
    resized = at_grid(attention_pool(model), size // TOKEN).positional_embedding
    model.clip.visual.attnpool.positional_embedding = torch.nn.Parameter(resized, requires_grad=False)


def attention_pool(model: Model) -> AttentionPool:
    """The weights of the model's attention pool, as the numerics use them."""
    pool = model.clip.visual.attnpool
    projections = {"q": pool.q_proj, "k": pool.k_proj, "v": pool.v_proj, "c": pool.c_proj}
    return AttentionPool(
        heads=pool.num_heads,
        positional_embedding=pool.positional_embedding.detach(),
        **{f"{name}_weight": layer.weight.detach() for name, layer in projections.items()},
        **{f"{name}_bias": layer.bias.detach() for name, layer in projections.items()},
    )


def embed_prompts(
    model: Model, texts: list[str], templates: Sequence[str], batch_size: int | None = None
) -> Float[Tensor, "text embed"]:
    """One unit embedding per text: the mean over templates of unit embeddings, made unit length again (CLIP's ensembling).

    batch_size: prompts a step; None runs all of them at once.
    """
    prompts = [template.replace("{}", text) for text in texts for template in templates]
    embedding = F.normalize(model.embed_texts(prompts, batch_size), dim=-1)
    return F.normalize(embedding.unflatten(0, (len(texts), len(templates))).mean(1), dim=-1)


def _text_tower(clip: torch.nn.Module) -> torch.nn.Module:
    """Where the text tower's layers are: a CLIP holds them itself."""
    return clip if isinstance(clip, open_clip.CLIP) else clip.text


def _check_length(texts: list[str], tokens: Int[Tensor, "text token"], tokenize: Callable[..., Tensor]) -> None:
    """Raises NadpipeError for texts that were cut: with room for one more token they begin differently."""
    length = tokens.shape[1]
    full = (tokens[:, -1] != 0).nonzero()[:, 0].tolist()
    if not full:
        return
    longer = tokenize([texts[at] for at in full], context_length=length + 1)
    for at, cut in zip(full, (longer[:, :length] != tokens[full]).any(1).tolist(), strict=True):
        if cut:
            raise NadpipeError(f"text {texts[at][:40]!r}… is longer than the model's {length} tokens; shorten it")


def _end_token(clip: torch.nn.Module, tokens: Int[Tensor, "text token"]) -> Int[Tensor, " text"] | None:
    """Position of each text's end token, if the tower pools there and no token looks ahead: what follows the end token then
    changes nothing. None for every other tower."""
    tower = _text_tower(clip)
    if not isinstance(tower, open_clip.CLIP | TextTransformer) or tower.attn_mask is None:
        return None
    if tower.attn_mask.shape[0] != tokens.shape[1]:  # one more with a class token, which is pooled instead
        return None
    pool = tower.text_pool_type if tower is clip else tower.pool_type
    if pool == "argmax":  # OpenAI's end token is the highest of the vocabulary
        return tokens.argmax(1)
    if pool == "eos":
        return (tokens == (tower.text_eos_id if tower is clip else tower.eos_id)).int().argmax(1)
    return None


def _encode_to_end(
    clip: torch.nn.Module, tokens: Int[Tensor, "text token"], end: Int[Tensor, " text"]
) -> Float[Tensor, "text embed"]:
    """encode_text of a tower that `_end_token` accepts, run on no more tokens than the longest text has.

    Equals open_clip's, which runs on all of the context's 77, within rounding.
    """
    tower = _text_tower(clip)
    length = int(end.max()) + 1
    x = tower.token_embedding(tokens[:, :length]) + tower.positional_embedding[:length]
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    x = tower.ln_final(x[torch.arange(len(x)), end])  # of each token by itself, so of the pooled one alone
    if tower.text_projection is None:
        return x
    return tower.text_projection(x) if isinstance(tower.text_projection, torch.nn.Linear) else x @ tower.text_projection


def _identity(clip: torch.nn.Module, config: dict[str, Any], preprocessing: Preprocessing) -> str:
    """What an artifact's numbers depend on: weights, model config (heads, activation) and preprocessing."""
    about = json.dumps([config, dataclasses.asdict(preprocessing)], sort_keys=True)
    return hashlib.sha256(f"{about}\n{state_sha256(clip.state_dict())}".encode()).hexdigest()


def state_sha256(state: dict[str, Tensor]) -> str:
    """Hash of all weights as float32, by name: the same whatever file format they came in."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {tuple(state[name].shape)}\n".encode())
        digest.update(np.ascontiguousarray(state[name].float().cpu().numpy()).data)
    return digest.hexdigest()


# -------------------------------------------------------------------------------------------------- configs and sources


def _read_config(architecture: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model config and preprocessing config of an architecture, from open_clip, the hub or a JSON file."""
    defaults = dataclasses.asdict(PreprocessCfg())
    if architecture.startswith(_HUB):
        try:
            path = hf_hub_download(architecture.removeprefix(_HUB), "open_clip_config.json")
        except Exception as error:  # the hub client raises many kinds: offline, not found, no access
            raise NadpipeError(f"{architecture}: cannot be fetched from the hub ({type(error).__name__})") from None
    elif architecture.endswith(".json"):
        path = architecture
    else:
        config = open_clip.get_model_config(architecture)
        if config is None:
            known = ", ".join(name for name in open_clip.list_models() if name.startswith("RN"))
            raise NadpipeError(f"model.architecture: open_clip has no model {architecture}; CLIP-ResNets are {known}")
        return config, defaults
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NadpipeError(f"{path}: no readable model config JSON ({error})") from None
    config = content.get("model_cfg", content)
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    if missing:
        raise NadpipeError(f"{path}: no open_clip model config, {', '.join(missing)} missing")
    return config, merge_preprocess_dict(defaults, content.get("preprocess_cfg", {}))


def _find_checkpoint(architecture: str, pretrained: str | None) -> tuple[Path, dict[str, Any]]:
    """The file with the weights, and what its source says of preprocessing and activation."""
    if architecture.startswith(_HUB):
        try:
            return Path(download_pretrained_from_hf(architecture.removeprefix(_HUB))), {}
        except Exception as error:
            raise NadpipeError(f"{architecture}: cannot be fetched from the hub ({type(error).__name__})") from None
    if not pretrained:
        raise NadpipeError("model.pretrained: name a pretrained tag of open_clip or a checkpoint file")
    if Path(pretrained).is_file():
        return Path(pretrained), {}
    tag = get_pretrained_cfg(architecture.replace("/", "-"), pretrained)
    if not tag:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise NadpipeError(f"model.pretrained: {pretrained} is neither a file nor a tag of {architecture}; tags: {tags}")
    try:
        path = Path(download_pretrained(tag))
    except Exception as error:
        raise NadpipeError(
            f"model.pretrained: {architecture} {pretrained} cannot be downloaded ({type(error).__name__})"
        ) from None
    preprocess = {key: tag[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in tag}
    return path, {"preprocess": preprocess, "quick_gelu": tag.get("quick_gelu", False)}


def _refuse_other_towers(architecture: str, config: dict[str, Any]) -> None:
    """Before anything is built: a ResNet of open_clip has four layer counts, a ViT or a timm model has not."""
    vision = config["vision_cfg"]
    if "timm_model_name" in vision or not isinstance(vision.get("layers"), list | tuple):
        tower = vision.get("timm_model_name", "a vision transformer")
        raise NadpipeError(f"{architecture}: image tower is {tower}; {_NEEDS}")


def _preprocessing(architecture: str, config: dict[str, Any], preprocess: dict[str, Any]) -> Preprocessing:
    if preprocess["resize_mode"] != "shortest":
        raise NadpipeError(
            f"{architecture}: preprocessing has resize_mode {preprocess['resize_mode']}; nadpipe supports shortest"
        )
    size = config["vision_cfg"]["image_size"]
    if not isinstance(size, int):
        if size[0] != size[1]:
            raise NadpipeError(f"{architecture}: image_size {size} is not square; nadpipe needs a square one")
        size = size[0]
    mean, std = (tuple(float(value) for value in preprocess[name]) for name in ("mean", "std"))
    return Preprocessing(size, mean, std, preprocess["interpolation"])


def _tokenizer(text_config: dict[str, Any]) -> Callable[[list[str]], Tensor]:
    length = text_config.get("context_length", 77)
    options = text_config.get("tokenizer_kwargs", {})
    if "hf_tokenizer_name" in text_config:
        return open_clip.tokenizer.HFTokenizer(text_config["hf_tokenizer_name"], context_length=length, **options)
    return open_clip.SimpleTokenizer(context_length=length, **options)


def _name(architecture: str) -> str:
    return Path(architecture).stem if architecture.endswith(".json") else architecture


# ---------------------------------------------------------------------------------------------------------- state dicts


def read_state(path: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a checkpoint by name, and whether it is an archive as OpenAI published them.

    Formats: safetensors; what torch.save wrote of a state dict (perhaps under the key `state_dict`); TorchScript. Only
    tensors are read: a file that would need any other object is refused.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path), False
        if _is_torchscript(path):
            state = _read_torchscript(path)
            openai = all(name in state for name in _OPENAI_EXTRAS)
            return {name: value for name, value in state.items() if name not in _OPENAI_EXTRAS}, openai
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        RuntimeError,
        pickle.UnpicklingError,
        EOFError,
        OSError,
        KeyError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NadpipeError(
            f"{path}: not readable as safetensors, a plain state dict or a TorchScript archive ({reason[:160]})"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise NadpipeError(f"{path}: holds no state dict (names with tensors); save model.state_dict()")
    return {name.removeprefix("module."): value for name, value in state.items()}, False


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of a TorchScript archive, read without running or compiling any of its code."""
    with zipfile.ZipFile(path) as archive:
        data = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(data) as stream:
            module = _TensorUnpickler(stream, archive, data.removesuffix("data.pkl")).load()
    state: dict[str, Tensor] = {}
    _collect_tensors(module, "", state)
    return state


class _Scripted:
    """Stands for any class of a TorchScript archive: attributes, no code."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles tensors, containers and attribute holders; refuses every other class."""

    def __init__(self, stream, archive: zipfile.ZipFile, folder: str):
        super().__init__(stream)
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Scripted
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name in _SCRIPT_LISTS:
            return _keep_values
        raise pickle.UnpicklingError(f"the archive asks for {module}.{name}, which is no tensor")

    def persistent_load(self, identifier: tuple) -> Tensor:
        _, dtype, key, _, count = identifier
        content = self._archive.read(f"{self._folder}data/{key}")
        return torch.frombuffer(bytearray(content), dtype=dtype)[:count] if count else torch.empty(0, dtype=dtype)


_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_SCRIPT_LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)


def _keep_values(values: Any, *_: Any) -> Any:
    return values


def _collect_tensors(module: Any, prefix: str, state: dict[str, Tensor]) -> None:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            state[prefix + name] = value
        elif isinstance(value, _Scripted):
            _collect_tensors(value, f"{prefix}{name}.", state)


def _load_state(clip: torch.nn.Module, state: dict[str, Tensor], path: Path, architecture: str) -> None:
    """Fill the model; every weight must be there, fit and be finite."""
    wanted = clip.state_dict()
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in wanted]
    wrong = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    for problem, names in (("missing", missing), ("unknown", unknown), ("of another shape", wrong)):
        if names:
            raise NadpipeError(
                f"{path}: does not fit {architecture}: {len(names)} weights {problem}, first {names[0]}; "
                "set model.architecture to the checkpoint's own"
            )
    bad = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise NadpipeError(f"{path}: {len(bad)} weights hold NaN or infinity, first {bad[0]}; the checkpoint is broken")
    clip.load_state_dict(state, strict=False)
