"""Export the readout: the weights of the image tower that later stages need."""

import dataclasses
from pathlib import Path

from nadpipe.store.pool import write_weights
from nadpipe.towers.model import load_model


def export_readout(architecture: str, output: Path, pretrained: str | None = None, block: int | None = None) -> None:
    """Load the model and write its readout and attention weights, with the model's identity and preprocessing.

    Args:
        architecture: Model name of open_clip, hf-hub:org/name, or path of a model config JSON.
        output: Zarr store.
        pretrained: Pretrained tag or checkpoint file; none for hf-hub.
        block: Block of the neurons, from 0; by default the last one that reaches a head that is read out.
    """
    model = load_model(architecture, pretrained, device="cpu")
    tower = model.image_tower(block=block)
    attributes = {
        "pretrained": pretrained or "",
        "sha256": model.weights_sha256,
        "heads": tower.readout.heads,
        "neurons": tower.readout.neurons,
        "tokens": tower.prefix + tower.grid**2,
        "grid": tower.grid,
        "block": tower.block,
        **dataclasses.asdict(model.preprocessing),
    }
    write_weights(output, tower.readout, tower.pool, model.stamp.made_by(__name__), attributes)
