"""Sources of models: open_clip's own names and tags, the Hugging Face hub, and local files."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import hf_hub_download
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf, get_pretrained_cfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from nadpipe.errors import NadpipeError, printable
from nadpipe.towers.model_config import check_model_config, read_model_config

_HUB = "hf-hub:"
_TAG_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A file with weights, and the settings from its source that the model config does not contain."""

    path: Path
    preprocessing: dict[str, Any] = dataclasses.field(default_factory=dict)
    quick_gelu: bool = False


def read_config(architecture: str, is_supported: Callable[[dict[str, Any]], bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the model config and the preprocessing values of an architecture.

    architecture: a model name of open_clip, `hf-hub:org/name`, or the path of a model config JSON.
    is_supported: returns True for a model config that nadpipe supports; the message about an unknown name lists only these.
    Raises NadpipeError if the architecture is unknown or its config is invalid.
    """
    defaults = dataclasses.asdict(PreprocessCfg())
    if architecture.startswith(_HUB):
        path = Path(_fetch(architecture, lambda name: hf_hub_download(name, "open_clip_config.json")))
    elif architecture.endswith(".json"):
        path = Path(architecture)
    else:
        config = None if ":" in architecture else open_clip.get_model_config(architecture)  # a colon names a place, not a model
        if config is None:
            names = ", ".join(name for name in open_clip.list_models() if is_supported(open_clip.get_model_config(name)))
            raise NadpipeError(f"model.architecture: open_clip has no model {printable(architecture)}; use one of {names}")
        check_model_config(config, architecture)
        return config, defaults
    config, preprocessing = read_model_config(path)
    return config, merge_preprocess_dict(defaults, preprocessing)


def find_checkpoint(architecture: str, pretrained: str | None) -> Checkpoint:
    """Return the checkpoint of an architecture, downloading it if needed.

    pretrained: a local file or a pretrained tag of open_clip; None for `hf-hub:`.
    Raises NadpipeError if there is no such checkpoint or it cannot be downloaded.
    """
    if architecture.startswith(_HUB):
        return Checkpoint(Path(_fetch(architecture, lambda name: download_pretrained_from_hf(name))))
    if not pretrained:
        raise NadpipeError("model.pretrained: no weights given; name a pretrained tag of open_clip or a checkpoint file")
    if _exists(Path(pretrained)):
        return Checkpoint(Path(pretrained))
    tag = get_pretrained_cfg(architecture.replace("/", "-"), pretrained)
    if not tag:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise NadpipeError(
            f"model.pretrained: {printable(pretrained)} is neither a file nor a tag of {printable(architecture)}; "
            f"give a file or a tag of {tags}"
        )
    try:
        path = Path(download_pretrained(tag))
    except Exception as error:  # the clients raise many kinds: offline, not found, no access
        raise NadpipeError(
            f"model.pretrained: cannot download {pretrained} of {architecture} ({type(error).__name__}); "
            "check the network, or give a checkpoint file"
        ) from None
    preprocessing = {key: tag[key] for key in _TAG_PREPROCESSING if key in tag}
    return Checkpoint(path, preprocessing, bool(tag.get("quick_gelu", False)))


def display_name(architecture: str) -> str:
    """Return the name that artifacts carry: the stem of a JSON file, any other architecture unchanged."""
    return Path(architecture).stem if architecture.endswith(".json") else architecture


def _exists(path: Path) -> bool:
    """Return True if there is anything at a path, even a link that leads nowhere; reading it then says what is wrong."""
    try:
        path.lstat()
    except (OSError, ValueError):  # too long, or with a null character: no file has such a name
        return False
    return True


def _fetch(architecture: str, download: Callable[[str], str]) -> str:
    """Return the path of a file from the hub. Raises NadpipeError if the download fails."""
    try:
        return download(architecture.removeprefix(_HUB))
    except Exception as error:  # the hub's client raises many kinds: offline, not found, no access
        raise NadpipeError(
            f"{architecture}: cannot download from the hub ({type(error).__name__}); check the name and the network"
        ) from None
