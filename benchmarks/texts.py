"""Measure prompts per second of the text tower: open_clip's encode_text, and nadpipe, which cuts prompts at their end token.

python benchmarks/texts.py
"""

import random
import tempfile
from pathlib import Path

import torch
from common import ARCHITECTURES, TINY, make_parser, parse, random_checkpoint, report, timed

from nadpipe.data.dictionaries import read_dictionary, read_templates
from nadpipe.towers.model import load_model
from nadpipe.towers.text import text_tower


def main() -> None:
    """Compare the speed and the embeddings."""
    parser = make_parser(__doc__)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="RN50")
    parser.add_argument("--words", type=int, default=30_000, help="number of words from which prompts are drawn")
    parser.add_argument("--prompts", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    given = parse(parser, architecture=TINY, words=300, prompts=32, batch_size=8)
    words, templates = read_dictionary(f"wordfreq:{given.words}"), read_templates(["imagenet"])
    generator = random.Random(0)
    prompts = [generator.choice(templates).replace("{}", generator.choice(words)) for _ in range(given.prompts)]
    with tempfile.TemporaryDirectory() as folder:
        clip, model = random_checkpoint(given.architecture, Path(folder))
        clip.to(given.device)
        tower = text_tower(load_model(**model, device=given.device))
    batch = prompts[: given.batch_size]

    def encode_text() -> torch.Tensor:
        return clip.encode_text(tower.tokenize(batch).to(given.device))

    def embed_texts() -> torch.Tensor:
        return tower.embed_texts(prompts, given.batch_size)

    with torch.inference_mode():
        plain_seconds, expected = min((timed(encode_text) for _ in range(2)), key=lambda run: run[0])
        nadpipe_seconds, embedding = min((timed(embed_texts) for _ in range(2)), key=lambda run: run[0])
    error = ((embedding[: len(batch)] - expected).norm(dim=1) / expected.norm(dim=1)).max()
    per_prompt = {
        f"open_clip encode_text ({len(batch)} prompts)": plain_seconds / len(batch),
        f"nadpipe ({len(prompts)})": nadpipe_seconds / len(prompts),
    }
    rows = [
        {
            "side": side,
            "prompts/s": round(1 / seconds, 1),
            "speed-up": round(plain_seconds / len(batch) / seconds, 1),
            "30,000 words × 80 templates": f"{30_000 * 80 * seconds / 3600:.1f} h",
            "largest relative difference": f"{float(error):.1e}",
        }
        for side, seconds in per_prompt.items()
    ]
    title = f"Text tower of {given.architecture} on {given.device}, random weights, English words in ImageNet's 80 templates"
    report(given, f"texts_{given.device}", title, rows)


if __name__ == "__main__":
    main()
