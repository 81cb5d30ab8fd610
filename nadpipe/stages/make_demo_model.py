"""Unpack the demo's CLIP-ResNet: weights, model config and dictionary."""

import json
from pathlib import Path

from safetensors.torch import save

from nadpipe.demo.checkpoint import unpack_model
from nadpipe.demo.data import dictionary
from nadpipe.demo.files import CHECKPOINT
from nadpipe.progress import track
from nadpipe.store.atomic import atomic_path


def make_demo_model(output_weights: Path, output_config: Path, output_dictionary: Path, checkpoint: Path = CHECKPOINT) -> None:
    """Write the demo model as an open_clip state dict and model config, and the texts that name its units.

    Args:
        output_weights: Safetensors file with the weights.
        output_config: JSON file with the model config.
        output_dictionary: Text file with one text per line.
        checkpoint: Packed checkpoint; by default the one in the package.
    """
    state, config = unpack_model(checkpoint)
    writers = {
        output_weights: lambda path: path.write_bytes(save(state)),
        output_config: lambda path: path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8"),
        output_dictionary: lambda path: path.write_text("\n".join(dictionary()) + "\n", encoding="utf-8"),
    }
    for output, write in track(writers.items(), "unpacking", "file"):
        with atomic_path(output) as path:
            write(path)
