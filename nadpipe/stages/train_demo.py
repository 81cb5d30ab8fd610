"""Train the demo's CLIP-ResNet on the demo world and measure it on held-out scenes (no rule: its result is in the package)."""

import dataclasses
import json
from pathlib import Path

import torch

from nadpipe.artifacts import whole
from nadpipe.demo.checkpoint import VOCABULARY, pack_model, unpack_model
from nadpipe.demo.train import COURSE, IMAGE_SIZE, average_precision, held_out, mean_by_group, model_config, train


def train_demo(output: Path, output_metrics: Path, seed: int = 0, threads: int = 2, held_out_scenes: int = 2000) -> None:
    """Train, pack, load what was packed, and write its average precision by text on scenes that training never saw.

    About 20 minutes on 2 free cores. The same weights come out for the same library versions, processor kind and threads.

    Args:
        output: Packed checkpoint, safetensors.
        output_metrics: JSON with the average precision of each word and the mean of each group.
        seed: Seed of the scenes, the weights and their order.
        threads: CPU threads.
        held_out_scenes: Scenes to measure on.
    """
    torch.set_num_threads(threads)
    course = dataclasses.replace(COURSE, seed=seed)
    model, vocabulary = train(course, workers=threads)
    with whole(output) as path:
        pack_model(model.state_dict(), vocabulary.ids, model_config(course, IMAGE_SIZE, VOCABULARY), path)
    state, _ = unpack_model(output)
    state["token_embedding.weight"] = state["token_embedding.weight"][vocabulary.ids]
    model.load_state_dict(state)
    scenes = held_out(course.lessons[-1], held_out_scenes, course.seed, vocabulary, workers=threads)
    precision = average_precision(model, scenes, vocabulary)
    with whole(output_metrics) as path:
        path.write_text(json.dumps({"mean": mean_by_group(precision), "word": precision}, indent=2) + "\n", encoding="utf-8")
