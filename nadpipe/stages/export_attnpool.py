"""Write the attention pool's weights: all of the model that the later stages need."""

import dataclasses
from pathlib import Path

from nadpipe.artifacts import ZARR, create_zarr
from nadpipe.fingerprint import code_fingerprint
from nadpipe.models import attention_pool, load_model, state_sha256
from nadpipe.progress import track


def export_attnpool(architecture: str, output: Path, pretrained: str | None = None) -> None:
    """Load the model and write its attention pool's weights with the model's identity and preprocessing.

    Args:
        architecture: Model name of open_clip, hf-hub:org/name, or path of a model config JSON.
        output: Zarr store.
        pretrained: Pretrained tag or checkpoint file; none for hf-hub.
    """
    model = load_model(architecture, pretrained, device="cpu")
    pool = attention_pool(model)
    stamp = dataclasses.replace(model.stamp, code=code_fingerprint(__name__))
    sizes = {
        "token": pool.tokens,
        "neuron": pool.neurons,
        "out": pool.neurons,
        "embed": len(pool.c_bias),
    }
    about = {
        "pretrained": pretrained or "",
        "sha256": state_sha256(model.clip.state_dict()),
        "heads": pool.heads,
        **dataclasses.asdict(model.preprocessing),
    }
    with create_zarr(output, "attention pool", stamp, sizes, attributes=about) as store:
        for name in track(ZARR["attention pool"], "writing weights", "array"):
            store.write(name, getattr(pool, name))
