import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from nadpipe.demo import train as training
from nadpipe.demo.checkpoint import VOCABULARY, unpack_model
from nadpipe.demo.data import DRIFTS, YEARS, dictionary, draw_set
from nadpipe.demo.files import CHECKPOINT, VIT_CHECKPOINT
from nadpipe.demo.world import BACKGROUNDS, CLASSES, COLOURS, CONCEPTS, KINDS, TEXTURES, Odds, draw_scene, write_caption
from nadpipe.errors import NadpipeError
from nadpipe.stages import train_demo as command
from nadpipe.stages.make_demo_data import make_demo_data
from nadpipe.stages.make_demo_dictionary import make_demo_dictionary
from nadpipe.stages.make_demo_model import make_demo_model

DEMO = Path(training.__file__).parent
PACKAGED = {"resnet": (CHECKPOINT, "MODEL_CARD.md", "metrics.json"), "vit": (VIT_CHECKPOINT, "VIT_CARD.md", "vit_metrics.json")}


def scenes(count, odds=None, seed=0, size=(96, 128)):
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, *size, odds or Odds(radius=(16.0, 30.0))) for _ in range(count)]


def test_mask_and_truth_agree_with_the_objects_of_a_scene():
    for scene in scenes(40):
        visible = {CLASSES[value] for value in np.unique(scene.mask)}
        assert scene.background in visible
        assert visible - {scene.background} <= {thing.kind for thing in scene.things}
        truth = scene.truth()
        assert {word for word in KINDS if truth[word]} == {thing.kind for thing in scene.things}
        assert {word for word in BACKGROUNDS if truth[word]} == {scene.background}
        assert list(truth) == list(CONCEPTS)


def test_captions_are_true():
    rng = np.random.default_rng(1)
    for scene in scenes(60):
        words = set(write_caption(rng, scene).split())
        truth = scene.truth()
        assert all(truth[word] for word in words & set(CONCEPTS))
        assert words & set(CONCEPTS)


def test_a_small_patch_identifies_the_kind():
    """Compare the colours of patches of 24 × 24 pixels inside objects: patches of the same kind overlap more than others."""
    patches = {}
    for kind in KINDS:
        odds = Odds(
            count=(0.0, 1.0), radius=(40.0, 44.0), weight={word: float(word == kind) for word in KINDS} | {"plain": 1e9}
        )
        patches[kind] = []
        for scene in scenes(12, odds, seed=len(kind)):
            rows, columns = np.nonzero(scene.mask == CLASSES.index(kind))
            y, x = int(np.median(rows)), int(np.median(columns))
            pixels = scene.image[max(0, y - 12) : y + 12, max(0, x - 12) : x + 12].reshape(-1, 3) // 32
            counts = Counter(map(tuple, pixels.tolist()))
            patches[kind].append({colour: n / len(pixels) for colour, n in counts.items()})
    share = {
        kind: np.mean([[sum(min(a[c], b.get(c, 0)) for c in a) for b in same if b is not a] for a in same])
        for kind, same in patches.items()
    }
    for kind, same in patches.items():
        other = np.mean(
            [
                sum(min(a[c], b.get(c, 0)) for c in a)
                for a in same
                for name, rest in patches.items()
                if name != kind
                for b in rest
            ]
        )
        assert share[kind] > 1.2 * other


def test_the_same_seed_draws_the_same_files(tmp_path):
    for name in ("a", "b"):
        make_demo_data("segmentation", 3, 5, tmp_path / name / "s", tmp_path / name / "s.csv")
    make_demo_data("segmentation", 3, 6, tmp_path / "c" / "s", tmp_path / "c" / "s.csv")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 7
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert (tmp_path / "a/s/images/000000.jpg").read_bytes() != (tmp_path / "c/s/images/000000.jpg").read_bytes()
    table = pd.read_csv(tmp_path / "a" / "s.csv")
    for row in table.itertuples():
        mask = np.asarray(Image.open(tmp_path / "a" / row.mask_path))
        assert Image.open(tmp_path / "a" / row.path).size == mask.shape[::-1]
        assert CLASSES.index(row.background) in mask


def test_no_scene_of_the_demo_was_used_to_choose_a_method():
    """The benchmark of the methods draws the set `methods` from seeds 0 and 1; the demo draws `segmentation` from any seed."""

    def drawn(name, seed):
        return {scene.image.tobytes() for scene, _ in draw_set(name, 6, seed)}

    sets = [drawn(name, seed) for name in ("methods", "segmentation") for seed in (0, 1)]
    assert len(set.union(*sets)) == 4 * 6
    sizes = [Counter(scene.image.shape for scene, _ in draw_set(name, 12, 0)) for name in ("methods", "segmentation")]
    assert all(len(counts) > 1 for counts in sizes)


def test_the_scenes_that_chose_the_methods_and_those_of_the_other_sets_stay_the_same():
    """A scene depends on its stream of random numbers, so another stream would change every table of the demo."""
    streams = {"discovery": 7919, "methods": 7920, "monitoring": 7921}
    for name, stream in streams.items():
        scene, _ = next(draw_set(name, 1, 3))
        rng = np.random.default_rng([3, stream, 0, 0])
        if name == "methods":
            size = ((192, 192), (192, 256), (256, 192), (240, 288))[rng.integers(4)]
            odds = Odds(count=(0.0, 0.4, 0.4, 0.2), radius=(34.0, 66.0))
        else:
            size = (192, 192)
            odds = Odds(weight={word: first for word, (first, _) in DRIFTS.items()} if name == "monitoring" else {})
        np.testing.assert_array_equal(scene.image, draw_scene(rng, *size, odds).image)


@pytest.mark.slow
def test_planted_concepts_drift_and_the_others_do_not():
    rows = pd.DataFrame([row for _, row in draw_set("monitoring", 120, 0)])
    assert sorted(rows["year"].unique()) == list(YEARS)
    early, late = (rows[rows["year"].isin(years)] for years in (YEARS[:2], YEARS[-2:]))
    for word in CONCEPTS:
        change = late[word].mean() - early[word].mean()
        error = np.sqrt(sum(years[word].var() / len(years) for years in (early, late)))
        if word in DRIFTS:
            assert np.sign(change) == np.sign(DRIFTS[word][1] - DRIFTS[word][0])
            assert abs(change) > 3 * error
        else:
            assert abs(change) < 3.5 * error


def test_the_dictionary_names_every_concept_once():
    texts = dictionary()
    assert len(texts) == len(set(texts))
    assert set(CONCEPTS) <= set(texts)


def test_the_dictionary_file_has_one_text_per_line(tmp_path):
    make_demo_dictionary(tmp_path / "d.txt")
    assert (tmp_path / "d.txt").read_text().splitlines() == dictionary()


@pytest.mark.parametrize("tower", training.COURSES)
def test_the_checkpoint_is_small_and_unpacks_to_open_clips_own_names(tower, tmp_path):
    checkpoint, *_ = PACKAGED[tower]
    assert checkpoint.stat().st_size <= 8e6
    state, config = unpack_model(checkpoint)
    clip = training.CLIP(**config)
    clip.load_state_dict(state)
    positions = state[training.POSITIONS[tower]]
    assert len(positions) - 1 == (training.IMAGE_SIZE // training.TOKEN[tower]) ** 2
    make_demo_model(tmp_path / "w.safetensors", tmp_path / "m.json", checkpoint)
    assert json.loads((tmp_path / "m.json").read_text()) == config
    assert config == training.model_config(training.COURSES[tower], training.IMAGE_SIZE, VOCABULARY)


@pytest.mark.slow
@pytest.mark.parametrize("tower", training.COURSES)
def test_the_packaged_model_recognises_its_world(tower):
    checkpoint, _, metrics = PACKAGED[tower]
    vocabulary = training.Vocabulary()
    state, config = unpack_model(checkpoint)
    state["token_embedding.weight"] = state["token_embedding.weight"][vocabulary.ids]
    config["text_cfg"]["vocab_size"] = len(vocabulary.ids)
    clip = training.CLIP(**config)
    clip.load_state_dict(state)
    scenes = training.held_out(training.COURSES[tower].lessons[-1], 200, 0, vocabulary, workers=1)
    mean = training.mean_by_group(training.average_precision(clip.eval(), scenes, vocabulary))
    assert min(mean["kind"], mean["colour"], mean["background"]) > {"resnet": 0.85, "vit": 0.7}[tower]
    card = json.loads((DEMO / metrics).read_text())
    for group, value in card["mean"].items():
        assert mean[group] == pytest.approx(value, abs=0.05)


@pytest.mark.parametrize("tower", training.COURSES)
def test_the_model_card_states_the_measured_precision(tower):
    checkpoint, card, metrics = PACKAGED[tower]
    text = (DEMO / card).read_text()
    measured = json.loads((DEMO / metrics).read_text())
    assert hashlib.sha256(checkpoint.read_bytes()).hexdigest() in text
    for group, words in training.GROUPS.items():
        assert f"| {group} | {measured['mean'][group]:.3f} |" in text
        for word in words:
            assert f"{word} {measured['word'][word]:.3f}" in text


def tiny_course(tower):
    course = training.COURSES[tower]
    lessons = [
        dataclasses.replace(lesson, scenes=12, steps=2, batch=8, size=size, odds=Odds(radius=(14.0, 24.0)))
        for lesson, size in zip(course.lessons, (64, 96), strict=True)
    ]
    return dataclasses.replace(course, seed=1, width={"resnet": 4, "vit": 32}[tower], embed=8, lessons=tuple(lessons))


@pytest.mark.slow
@pytest.mark.parametrize("tower", training.COURSES)
def test_training_is_reproducible_by_seed(tower, monkeypatch):
    monkeypatch.setattr(training, "_PROGRESS_SCENES", 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    course = dataclasses.replace(tiny_course(tower), lessons=tiny_course(tower).lessons[1:])
    reports = []
    first, _ = training.train(course, 1, lambda model, size, vocabulary: reports.append((size, len(vocabulary.ids))))
    second, vocabulary = training.train(course, 2, lambda *_: None)
    other, _ = training.train(dataclasses.replace(course, seed=2), 1, lambda *_: None)
    torch.set_num_threads(threads)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name], rtol=0, atol=0)
    assert not torch.equal(first.visual.conv1.weight, other.visual.conv1.weight)
    assert reports == [(96, len(vocabulary.ids))]  # two steps: one report, at the end
    shape = {"resnet": (3 * 3 + 1, 128), "vit": (6 * 6 + 1, 32)}[tower]
    assert first.state_dict()[training.POSITIONS[tower]].shape == shape


@pytest.mark.slow
@pytest.mark.parametrize("tower", training.COURSES)
def test_the_training_command_packs_the_trained_model_and_evaluates_the_packed_one(tower, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "_PROGRESS_SCENES", 4)
    monkeypatch.setitem(command.COURSES, tower, tiny_course(tower))
    threads = torch.get_num_threads()
    command.train_demo(tmp_path / "c.safetensors", tmp_path / "m.json", tower, seed=1, threads=1, held_out_scenes=40)
    torch.set_num_threads(threads)
    state, config = unpack_model(tmp_path / "c.safetensors")
    assert config["vision_cfg"]["image_size"] == 96
    training.CLIP(**config).load_state_dict(state)
    measured = json.loads((tmp_path / "m.json").read_text())
    assert list(measured["word"]) == list(CONCEPTS)
    assert all(0 < value <= 1 for value in measured["word"].values())
    assert measured["mean"] == pytest.approx(training.mean_by_group(measured["word"]))
    ids = training.Vocabulary().ids
    nonzero = state["token_embedding.weight"].abs().sum(1) > 0
    assert nonzero.sum() == len(ids)
    assert nonzero[ids].all()


@pytest.mark.slow
def test_training_continues_from_a_packed_checkpoint_with_the_same_result(monkeypatch, tmp_path):
    monkeypatch.setattr(training, "_PROGRESS_SCENES", 4)
    course = tiny_course("vit")
    small = dataclasses.replace(course, lessons=course.lessons[:1])
    options = {"tower": "vit", "seed": 1, "threads": 1, "held_out_scenes": 40}
    threads = torch.get_num_threads()
    for name, lessons, start in (("small", small, None), ("whole", course, None), ("rest", course, tmp_path / "small")):
        monkeypatch.setitem(command.COURSES, "vit", lessons)
        command.train_demo(tmp_path / name, tmp_path / f"{name}.json", start=start, **options)
    torch.set_num_threads(threads)
    assert (tmp_path / "rest").read_bytes() == (tmp_path / "whole").read_bytes() != (tmp_path / "small").read_bytes()
    with pytest.raises(NadpipeError, match="--start: the course of resnet cannot be continued"):
        command.train_demo(tmp_path / "c", tmp_path / "m.json", start=tmp_path / "small")


def test_the_course_of_the_resnet_stays_the_same():
    """Its weights are in the package, and its card describes this course."""
    small, native = training.COURSES["resnet"].lessons
    assert (small.size, small.scenes, small.steps, small.batch, small.rate) == (96, 16_000, 400, 256, 1.5e-3)
    assert (native.size, native.scenes, native.steps, native.batch, native.rate) == (192, 8_000, 300, 128, 8e-4)
    assert small.patch_dropout == native.patch_dropout == 0


def test_the_largest_token_is_still_the_end_of_text():
    vocabulary = training.Vocabulary()
    token = vocabulary.encode(["a photo of fish", "checkered"])
    assert (vocabulary.ids[token] == vocabulary.tokenizer(["a photo of fish", "checkered"])).all()
    assert (token.argmax(1) == vocabulary.tokenizer(["a photo of fish", "checkered"]).argmax(1)).all()


def test_words_of_every_caption_are_in_the_vocabulary():
    vocabulary = training.Vocabulary()
    rng = np.random.default_rng(3)
    texts = [write_caption(rng, scene) for scene in scenes(50)] + [*COLOURS, *TEXTURES]
    assert set(vocabulary.tokenizer(texts).unique().tolist()) <= set(vocabulary.ids.tolist())
