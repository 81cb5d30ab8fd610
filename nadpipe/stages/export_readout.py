"""Export the readout: the weights of the image tower that later stages need."""

import dataclasses
from pathlib import Path

from nadpipe.store.pool import write_pool
from nadpipe.towers.model import load_model


def export_readout(architecture: str, output: Path, pretrained: str | None = None) -> None:
    """Load the model and write its readout and attention weights, with the model's identity and preprocessing.

    Args:
        architecture: Model name of open_clip, hf-hub:org/name, or path of a model config JSON.
        output: Zarr store.
        pretrained: Pretrained tag or checkpoint file; none for hf-hub.
    """
    model = load_model(architecture, pretrained, device="cpu")
    attributes = {
        "pretrained": pretrained or "",
        "sha256": model.weights_sha256,
        "heads": model.pool.heads,
        "neurons": model.pool.neurons,
        "tokens": model.pool.tokens,
        **dataclasses.asdict(model.preprocessing),
    }
    write_pool(output, model.pool, model.stamp.made_by(__name__), attributes)
