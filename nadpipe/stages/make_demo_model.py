"""Unpack the demo's CLIP-ResNet into ordinary files: weights, model config, dictionary."""

import json
from pathlib import Path

from safetensors.torch import save

from nadpipe.artifacts import whole
from nadpipe.demo.checkpoint import unpack_model
from nadpipe.demo.data import dictionary
from nadpipe.demo.files import CHECKPOINT
from nadpipe.progress import track


def make_demo_model(output_weights: Path, output_config: Path, output_dictionary: Path, checkpoint: Path = CHECKPOINT) -> None:
    """Write the demo model as open_clip's own state dict and model config, and the texts that name its units.

    Args:
        output_weights: Safetensors file.
        output_config: Model config JSON.
        output_dictionary: Text file, one text a line.
        checkpoint: Packed checkpoint; the one in the package unless given.
    """
    state, config = unpack_model(checkpoint)
    writers = {
        output_weights: lambda path: path.write_bytes(save(state)),
        output_config: lambda path: path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8"),
        output_dictionary: lambda path: path.write_text("\n".join(dictionary()) + "\n", encoding="utf-8"),
    }
    for output, write in track(writers.items(), "unpacking", "file"):
        with whole(output) as path:
            write(path)
