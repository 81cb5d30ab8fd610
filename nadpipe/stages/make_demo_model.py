"""Unpack a CLIP model of the demo: weights and model config."""

import json
from pathlib import Path

from safetensors.torch import save

from nadpipe.demo.checkpoint import unpack_model
from nadpipe.demo.files import CHECKPOINT
from nadpipe.progress import track
from nadpipe.store.atomic import atomic_path


def make_demo_model(output_weights: Path, output_config: Path, checkpoint: Path = CHECKPOINT) -> None:
    """Write a demo model as an open_clip state dict and model config.

    Args:
        output_weights: Safetensors file with the weights.
        output_config: JSON file with the model config.
        checkpoint: Packed checkpoint; by default the CLIP-ResNet in the package.
    """
    state, config = unpack_model(checkpoint)
    writers = {
        output_weights: lambda path: path.write_bytes(save(state)),
        output_config: lambda path: path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8"),
    }
    for output, write in track(writers.items(), "unpacking", "file"):
        with atomic_path(output) as path:
            write(path)
