"""Train the demo's CLIP models on the demo world: a CLIP-ResNet and a vision transformer.

The models are open_clip's own: `ModifiedResNet` with an attention pool, or `VisionTransformer` with a class token, and a text
transformer. Each is trained in two lessons: small scenes with mostly one object, then scenes of the native size. The loss is a
sum of two: the contrastive loss of CLIP over captions, and a sigmoid loss (SigLIP, arXiv 2303.15343) over the prompts of single
words, in which every word that is true of a scene is a match.
"""

import dataclasses
import multiprocessing
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from sklearn.metrics import average_precision_score
from torch import Tensor

from nadpipe.demo.world import (
    BACKGROUNDS,
    COLOURS,
    CONCEPTS,
    KINDS,
    TEMPLATES,
    TEXTURES,
    Odds,
    draw_scene,
    write_caption,
)
from nadpipe.progress import track

Tower = Literal["resnet", "vit"]
CONTEXT_LENGTH = 32
IMAGE_SIZE = 192
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's
GROUPS = {"kind": tuple(KINDS), "colour": tuple(COLOURS), "texture": TEXTURES, "background": BACKGROUNDS}
TOKEN = {"resnet": 32, "vit": 16}  # side of a spatial token in pixels
POSITIONS = {"resnet": "visual.attnpool.positional_embedding", "vit": "visual.positional_embedding"}
_CAPTIONS = 6  # captions per scene; each step uses one of them
_PROGRESS_SCENES = 384  # held-out scenes of the progress reports
_HELD_OUT = 10**9  # scenes with this number or a larger one are never used in training


@dataclasses.dataclass(frozen=True)
class Lesson:
    """Define one lesson of the training.

    size: side of the scenes in pixels. batch: scenes per step. rate: largest learning rate of the one cycle. patch_dropout:
    share of the patches that a vision transformer does not see in a step (FLIP, arXiv 2212.00794), which saves time.
    """

    name: str
    size: int
    odds: Odds
    scenes: int
    steps: int
    batch: int
    rate: float
    patch_dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class Course:
    """Define everything that determines the trained weights, except for library versions and the number of threads."""

    tower: Tower
    bfloat16: bool  # autocast; slower than float32 for the vision transformer
    rounded: bool  # each lesson starts from float16 weights, so that training can continue from a packed checkpoint
    seed: int
    width: int
    embed: int
    lessons: tuple[Lesson, ...]


_FIRST = Odds(count=(0.08, 0.74, 0.18), radius=(22.0, 46.0))
COURSES = {
    "resnet": Course(
        tower="resnet",
        bfloat16=True,
        rounded=False,
        seed=0,
        width=24,
        embed=128,
        lessons=(
            Lesson("small", 96, _FIRST, 16_000, 400, 256, 1.5e-3),
            Lesson("native", IMAGE_SIZE, Odds(), 8_000, 300, 128, 8e-4),
        ),
    ),
    "vit": Course(
        tower="vit",
        bfloat16=False,
        rounded=True,
        seed=0,
        width=192,
        embed=128,
        lessons=(
            Lesson("small", 96, _FIRST, 16_000, 600, 192, 1e-3, patch_dropout=0.5),
            Lesson("native", IMAGE_SIZE, Odds(), 6_000, 120, 64, 5e-4, patch_dropout=0.5),
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Hold drawn scenes with their tokenised captions, and 0 or 1 for every word."""

    image: UInt8[np.ndarray, "scene height width 3"]
    token: Int[Tensor, "scene caption position"]
    truth: Float[Tensor, "scene concept"]


class Vocabulary:
    """Hold the sorted token ids that occur in the demo's texts. Training embeds only these tokens."""

    def __init__(self) -> None:
        self.tokenizer = SimpleTokenizer(context_length=CONTEXT_LENGTH)
        words = [template.format("a an and on") for template in TEMPLATES] + list(CONCEPTS)
        self.ids = torch.unique(torch.cat([torch.zeros(1, dtype=torch.long), self.tokenizer(words).flatten()]))

    def encode(self, texts: list[str]) -> Int[Tensor, "text position"]:
        """Return the tokens of the texts as positions in `ids`, which keeps their order: the end of text stays the largest."""
        return torch.searchsorted(self.ids, self.tokenizer(texts))


Save = Callable[[CLIP, int, Vocabulary], None]


def model_config(course: Course, image_size: int, vocabulary: int) -> dict:
    """Return the open_clip model config of a demo model, for images of `image_size` pixels."""
    vision = {
        "resnet": {"image_size": image_size, "layers": [1, 1, 1, 1], "width": course.width, "head_width": 64},
        "vit": {
            "image_size": image_size,
            "width": course.width,
            "layers": 6,
            "head_width": 32,
            "patch_size": TOKEN["vit"],
        },
    }
    return {
        "embed_dim": course.embed,
        "vision_cfg": vision[course.tower],
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocabulary,
            "width": 128,
            "heads": 4,
            "layers": 2,
        },
    }


def train(
    course: Course, workers: int, save: Save, start: tuple[int, dict[str, Tensor]] | None = None
) -> tuple[CLIP, Vocabulary]:
    """Train a demo model. The same course, libraries and number of threads give the same weights.

    save: called with the model, its image size and the vocabulary at every progress report, so that a run of an hour that is
    interrupted leaves weights. start: image size and weights after an earlier lesson of the same course, which are not trained
    again. The weights are those of a run without a start if the course rounds and the start was packed.
    Returns the model at the native size, in evaluation mode, and the vocabulary of its token embeddings.
    """
    vocabulary = Vocabulary()
    size, state = start or (0, None)
    for number, lesson in enumerate(course.lessons):
        if lesson.size <= size:
            continue
        torch.manual_seed(course.seed + number)
        config = model_config(course, lesson.size, len(vocabulary.ids))
        config["vision_cfg"]["patch_dropout"] = lesson.patch_dropout  # only while training: the packed config has none
        model = CLIP(**config, quick_gelu=False)
        if state is not None:
            model.load_state_dict(_resize_positions(state, POSITIONS[course.tower], lesson.size // TOKEN[course.tower]))
        first = number * 10**7
        scenes = draw_scenes(lesson, range(first, first + lesson.scenes), course.seed, vocabulary, workers)
        progress_scenes = held_out(lesson, _PROGRESS_SCENES, course.seed, vocabulary, workers)
        _train_lesson(model, course, lesson, scenes, progress_scenes, vocabulary, save)
        state = model.state_dict()
        if course.rounded:
            state = {name: value.half().float() for name, value in state.items()}
    return model.eval(), vocabulary


def average_precision(model: CLIP, scenes: Scenes, vocabulary: Vocabulary) -> dict[str, float]:
    """Compute the average precision of each word of CONCEPTS by the cosine of its mean prompt to the image embedding."""
    model.eval()
    with torch.inference_mode():
        image = torch.cat(
            [
                model.encode_image(_pixels(batch), normalize=True)
                for batch in np.array_split(scenes.image, max(1, len(scenes.image) // 64))
            ]
        )
        text = torch.stack(
            [model.encode_text(vocabulary.encode([template.format(word) for word in CONCEPTS])) for template in TEMPLATES]
        )
        text = F.normalize(F.normalize(text, dim=-1).mean(0), dim=-1)
    score, truth = (image @ text.T).numpy(), scenes.truth.numpy()
    return {word: float(average_precision_score(truth[:, column], score[:, column])) for column, word in enumerate(CONCEPTS)}


def mean_by_group(precision: dict[str, float]) -> dict[str, float]:
    """Compute the mean over the words of each group: kind, colour, texture, background."""
    return {group: float(np.mean([precision[word] for word in words])) for group, words in GROUPS.items()}


def draw_scenes(lesson: Lesson, numbers: range, seed: int, vocabulary: Vocabulary, workers: int) -> Scenes:
    """Draw the scenes with these numbers. A scene depends only on the seed, its number and the lesson, not on the workers."""
    jobs = [(lesson, number, seed) for number in numbers]
    label = f"drawing {lesson.name} scenes"
    if workers == 1:
        drawn = [_draw_one(job) for job in track(jobs, label, "scene", len(jobs))]
    else:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            drawn = list(track(pool.imap(_draw_one, jobs, chunksize=64), label, "scene", len(jobs)))
    token = vocabulary.encode([caption for _, captions, _ in drawn for caption in captions])
    return Scenes(
        image=np.stack([image for image, _, _ in drawn]),
        token=token.view(len(drawn), _CAPTIONS, CONTEXT_LENGTH),
        truth=torch.tensor([truth for _, _, truth in drawn], dtype=torch.float32),
    )


def held_out(lesson: Lesson, count: int, seed: int, vocabulary: Vocabulary, workers: int) -> Scenes:
    """Draw scenes of a lesson that are never used in training."""
    return draw_scenes(lesson, range(_HELD_OUT, _HELD_OUT + count), seed, vocabulary, workers)


def _draw_one(job: tuple[Lesson, int, int]) -> tuple[np.ndarray, list[str], list[int]]:
    lesson, number, seed = job
    rng = np.random.default_rng([seed, number])
    scene = draw_scene(rng, lesson.size, lesson.size, lesson.odds)
    captions = [write_caption(rng, scene) for _ in range(_CAPTIONS)]
    return scene.image, captions, list(scene.truth().values())


def _train_lesson(
    model: CLIP,
    course: Course,
    lesson: Lesson,
    scenes: Scenes,
    progress_scenes: Scenes,
    vocabulary: Vocabulary,
    save: Save,
) -> None:
    """Train the model in place on the scenes of one lesson. Print its average precision and save it every 100 steps."""
    prompts = torch.stack([vocabulary.encode([template.format(word) for word in CONCEPTS]) for template in TEMPLATES])
    rate = torch.logit(scenes.truth.mean(0).clamp(0.01, 0.99))
    scale, bias = torch.nn.Parameter(torch.tensor(2.0)), torch.nn.Parameter(rate.clone())
    model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW([*model.parameters(), scale, bias], lr=lesson.rate, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lesson.rate, total_steps=lesson.steps, pct_start=0.1, final_div_factor=100
    )
    rng = np.random.default_rng([course.seed, lesson.size])
    for step in track(range(lesson.steps), f"training on {lesson.name} scenes", "step"):
        pick = np.sort(rng.choice(len(scenes.image), lesson.batch, replace=False))
        image = _pixels(scenes.image[pick][:, :, :: rng.choice((-1, 1))])
        token = scenes.token[pick, rng.integers(_CAPTIONS, size=lesson.batch)]
        words = prompts[rng.integers(len(TEMPLATES))]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=course.bfloat16):
            image_embedding = model.encode_image(image, normalize=True)
            text_embedding = model.encode_text(torch.cat([token, words]), normalize=True)
        image_embedding, text_embedding = image_embedding.float(), text_embedding.float()
        captions, concepts = text_embedding.split([len(token), len(words)])
        similarity = model.logit_scale.exp() * image_embedding @ captions.T
        matches = scale.exp() * image_embedding @ concepts.T + bias
        loss = (
            _contrast(similarity, token)
            + 0.5 * F.binary_cross_entropy_with_logits(matches, scenes.truth[pick], reduction="none").sum(1).mean()
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(100))
        if (step + 1) % 100 == 0 or step + 1 == lesson.steps:
            means = mean_by_group(average_precision(model, progress_scenes, vocabulary))
            report = ", ".join(f"{group} {value:.3f}" for group, value in means.items())
            print(f"step {step + 1}: loss {loss.item():.3f}; average precision: {report}", flush=True)
            save(model, lesson.size, vocabulary)
            model.train()


def _contrast(similarity: Float[Tensor, "image text"], token: Int[Tensor, "text position"]) -> Float[Tensor, ""]:
    """Compute CLIP's symmetric loss. Scenes with the same caption match each other's captions."""
    same = (token[:, None] == token[None]).all(-1).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2


def _pixels(image: UInt8[np.ndarray, "scene height width 3"]) -> Float[Tensor, "scene 3 height width"]:
    """Normalise images as the model's own preprocessing does. The result is channels-last in memory."""
    scaled = torch.from_numpy(np.ascontiguousarray(image)).float().div_(255)
    return ((scaled - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


def _resize_positions(state: dict[str, Tensor], key: str, grid: int) -> dict[str, Tensor]:
    """Return the state with the positional embedding `key` of the image tower interpolated to grid × grid tokens."""
    pooled, spatial = state[key][:1], state[key][1:]
    side = round(len(spatial) ** 0.5)
    square = spatial.T.reshape(1, -1, side, side)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return {**state, key: torch.cat([pooled, square.flatten(2)[0].T])}
