"""Pack and unpack the checkpoints of the demo's models.

A packed checkpoint has half precision, and token embeddings only for the tokens of the demo's texts. `unpack_model` restores
the full vocabulary with zeros in all other rows, so that a model loads like any other checkpoint.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nadpipe.demo.files import CHECKPOINT

VOCABULARY = 49408  # tokens of CLIP's tokenizer
_TOKEN_IDS, _TOKEN_ROWS = "token_ids", "token_embedding.weight"


def pack_model(state: dict[str, torch.Tensor], token_ids: torch.Tensor, config: dict, path: Path) -> None:
    """Write a packed checkpoint: float16, with the config as metadata.

    state: state dict whose token embeddings have one row per entry of `token_ids`.
    """
    tensors = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    tensors[_TOKEN_IDS] = token_ids.to(torch.int32)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata={"config": json.dumps(config)})


def unpack_model(path: Path = CHECKPOINT) -> tuple[dict[str, torch.Tensor], dict]:
    """Return a demo model's state dict in float32 with the full vocabulary, and its open_clip model config."""
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()}
    rows = tensors.pop(_TOKEN_ROWS)
    full = torch.zeros(VOCABULARY, rows.shape[1])
    full[tensors.pop(_TOKEN_IDS).long()] = rows
    config["text_cfg"]["vocab_size"] = VOCABULARY
    return {**tensors, _TOKEN_ROWS: full}, config
