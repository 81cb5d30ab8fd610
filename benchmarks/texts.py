"""Prompts a second through the text tower: open_clip's encode_text against nadpipe, which cuts prompts behind their end.

python benchmarks/texts.py
"""

import argparse
import random
import tempfile
from pathlib import Path

import torch
from common import random_checkpoint, report, timed

from nadpipe.data.dictionaries import read_dictionary, read_templates
from nadpipe.towers.model import load_model
from nadpipe.towers.text import text_tower


def main() -> None:
    """Compare the speed and the embeddings."""
    options = argparse.ArgumentParser()
    options.add_argument("--architecture", default="RN50")
    options.add_argument("--prompts", type=int, default=2048)
    options.add_argument("--batch-size", type=int, default=256)
    options.add_argument("--device", default="cpu")
    given = options.parse_args()
    words, templates = read_dictionary("wordfreq:30000"), read_templates(["imagenet"])
    chosen = random.Random(0)
    prompts = [chosen.choice(templates).replace("{}", chosen.choice(words)) for _ in range(given.prompts)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        clip = random_checkpoint(given.architecture, path).to(given.device)
        tower = text_tower(load_model(given.architecture, str(path), given.device))
    some = prompts[: given.batch_size]

    def plain() -> torch.Tensor:
        return clip.encode_text(tower.tokenize(some).to(given.device))

    def own() -> torch.Tensor:
        return tower.embed_texts(prompts, given.batch_size)

    with torch.inference_mode():
        slow, expected = min((timed(plain) for _ in range(2)), key=lambda done: done[0])
        fast, found = min((timed(own) for _ in range(2)), key=lambda done: done[0])
    error = ((found[: len(some)] - expected).norm(dim=1) / expected.norm(dim=1)).max()
    sides = {f"open_clip encode_text ({len(some)} prompts)": slow / len(some), f"nadpipe ({len(prompts)})": fast / len(prompts)}
    rows = [
        {
            "side": side,
            "prompts/s": round(1 / took, 1),
            "times faster": round(slow / len(some) / took, 1),
            "30,000 words × 80 templates": f"{30_000 * 80 * took / 3600:.1f} h",
            "largest relative difference": f"{float(error):.1e}",
        }
        for side, took in sides.items()
    ]
    report(
        f"texts_{given.device}",
        f"Text tower of {given.architecture} on {given.device}, random weights, English words in ImageNet's 80 templates",
        rows,
    )


if __name__ == "__main__":
    main()
