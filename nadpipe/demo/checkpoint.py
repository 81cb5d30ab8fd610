"""The demo model's checkpoint in the package: half the precision, and only the token embeddings that its texts use.

`unpack_model` puts the tokens back into the full vocabulary (all other rows are zero), so that the model loads like any
other checkpoint.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nadpipe.demo.files import CHECKPOINT

VOCABULARY = 49408  # of CLIP's tokenizer
_TOKEN_IDS, _TOKEN_ROWS = "token_ids", "token_embedding.weight"


def pack_model(state: dict[str, torch.Tensor], token_ids: torch.Tensor, config: dict, path: Path) -> None:
    """Write the checkpoint of the package: float16, token rows of `token_ids` alone, the config as metadata."""
    tensors = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    tensors[_TOKEN_IDS] = token_ids.to(torch.int32)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata={"config": json.dumps(config)})


def unpack_model(path: Path = CHECKPOINT) -> tuple[dict[str, torch.Tensor], dict]:
    """The demo model's state dict with the full vocabulary, float32, and its open_clip model config."""
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()}
    rows = tensors.pop(_TOKEN_ROWS)
    full = torch.zeros(VOCABULARY, rows.shape[1])
    full[tensors.pop(_TOKEN_IDS).long()] = rows
    config["text_cfg"]["vocab_size"] = VOCABULARY
    return {**tensors, _TOKEN_ROWS: full}, config
