"""Unpack the demo's CLIP-ResNet into ordinary files: weights, model config, dictionary."""

import json
from pathlib import Path

from safetensors.torch import save_file

from nadpipe.artifacts import whole
from nadpipe.demo.checkpoint import unpack_model
from nadpipe.demo.data import dictionary
from nadpipe.demo.files import CHECKPOINT


def make_demo_model(output_weights: Path, output_config: Path, output_dictionary: Path, checkpoint: Path = CHECKPOINT) -> None:
    """Write the demo model as open_clip's own state dict and model config, and the texts that name its units.

    Args:
        output_weights: Safetensors file.
        output_config: Model config JSON.
        output_dictionary: Text file, one text a line.
        checkpoint: Packed checkpoint; the one in the package unless given.
    """
    state, config = unpack_model(checkpoint)
    with whole(output_weights) as path:
        save_file(state, path)
    with whole(output_config) as path:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    with whole(output_dictionary) as path:
        path.write_text("\n".join(dictionary()) + "\n", encoding="utf-8")
