"""Train a CLIP model of the demo and evaluate it on held-out scenes. No rule runs this; the package contains the result."""

import dataclasses
import json
from pathlib import Path

import torch

from nadpipe.demo.checkpoint import VOCABULARY, pack_model, unpack_model
from nadpipe.demo.train import (
    CLIP,
    COURSES,
    Tower,
    Vocabulary,
    average_precision,
    held_out,
    mean_by_group,
    model_config,
    train,
)
from nadpipe.errors import NadpipeError
from nadpipe.store.atomic import atomic_path


def train_demo(
    output: Path,
    output_metrics: Path,
    tower: Tower = "resnet",
    start: Path | None = None,
    seed: int = 0,
    threads: int = 2,
    held_out_scenes: int = 2000,
) -> None:
    """Train a model, pack it, and evaluate the packed model: average precision per word on held-out scenes.

    The CLIP-ResNet takes about 20 minutes on 2 idle cores; the vision transformer took an hour on 2 busy ones. The same library
    versions, processor type and number of threads give the same weights.

    Args:
        output: Packed checkpoint (safetensors), written at every 100th step and at the end of each lesson.
        output_metrics: JSON file with the average precision of each word and the mean of each group.
        tower: Image tower: resnet is the CLIP-ResNet, vit is the vision transformer.
        start: Packed checkpoint of the same course at the end of its first lesson, to continue from. Only for the vision
            transformer. The weights are the same as those of a run without it.
        seed: Random seed of the weights, the scenes and their order.
        threads: CPU threads.
        held_out_scenes: Number of scenes to evaluate on.
    """
    torch.set_num_threads(threads)
    course = dataclasses.replace(COURSES[tower], seed=seed)

    def save(model: CLIP, image_size: int, vocabulary: Vocabulary) -> None:
        with atomic_path(output) as path:
            pack_model(model.state_dict(), vocabulary.ids, model_config(course, image_size, VOCABULARY), path)

    if start is not None and not course.rounded:
        raise NadpipeError(f"--start: the course of {tower} cannot be continued from float16 weights; leave it out")
    model, vocabulary = train(course, threads, save, None if start is None else _unpack(start))
    model.load_state_dict(_unpack(output)[1])
    scenes = held_out(course.lessons[-1], held_out_scenes, course.seed, vocabulary, workers=threads)
    precision = average_precision(model, scenes, vocabulary)
    with atomic_path(output_metrics) as path:
        path.write_text(json.dumps({"mean": mean_by_group(precision), "word": precision}, indent=2) + "\n", encoding="utf-8")


def _unpack(path: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """Return the image size and the state dict of a packed checkpoint, with token embeddings of the demo's texts only."""
    state, config = unpack_model(path)
    state["token_embedding.weight"] = state["token_embedding.weight"][Vocabulary().ids]
    return config["vision_cfg"]["image_size"], state
