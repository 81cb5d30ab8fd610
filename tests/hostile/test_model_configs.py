"""Model configs that are damaged, load code of others or take all memory are refused in one line before open_clip sees them."""

import copy
import json
import os
import sys
import types
from pathlib import Path
from typing import ClassVar

import open_clip
import pytest
import torch
from conftest import TINY
from safetensors.torch import save_file

from nadpipe.errors import NadpipeError
from nadpipe.towers import sources
from nadpipe.towers.checkpoints import check_fit
from nadpipe.towers.model import load_model
from nadpipe.towers.model_config import check_model_config
from nadpipe.towers.sources import read_config
from nadpipe.towers.text import text_tower

VIT = TINY | {"vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}}


def with_value(config, key, value):
    """Return a config with one key set; `...` removes it."""
    config = copy.deepcopy(config)
    *sections, last = key.split(".")
    section = config
    for name in sections:
        section = section.setdefault(name, {})
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return config


def refused(path, tally):
    with pytest.raises(NadpipeError) as error:
        read_config(str(path), lambda config: True)
    message = str(error.value)
    tally("model configs", "\n" not in message)
    assert "\n" not in message
    assert repr(str(path))[1:-1] in message
    assert ";" in message
    assert len(message) < 2000
    return message


WRONG = ["text", "", True, None, [], {}, [1], {"a": 1}, -1, 0, 10**9, 10**30, 1.5, 1e300]
SIZES = [
    *("embed_dim", "vision_cfg.image_size", "vision_cfg.layers", "vision_cfg.width", "vision_cfg.head_width"),
    *("text_cfg.context_length", "text_cfg.vocab_size", "text_cfg.width", "text_cfg.heads", "text_cfg.layers"),
]


@pytest.mark.parametrize("key", SIZES)
def test_a_size_of_another_type_or_without_bounds_is_refused(tmp_path, tally, key):
    path = tmp_path / "m.json"
    for value in WRONG:
        path.write_text(json.dumps(with_value(TINY, key, value)))
        assert key in refused(path, tally)


SECTIONS = ("vision_cfg", "text_cfg", "preprocess_cfg", "")


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_of_another_type_is_refused(tmp_path, tally, section):
    for value in ["text", True, None, [], [1], -1, 1.5]:
        content = (
            with_value({"model_cfg": TINY}, "preprocess_cfg", value) if section == "preprocess_cfg" else TINY | {section: value}
        )
        (tmp_path / "m.json").write_text(json.dumps(content if section else value))
        refused(tmp_path / "m.json", tally)


INVALID = {
    "tokenizer options that run code": (
        "text_cfg.tokenizer_kwargs",
        {"trust_remote_code": True},
        "trust_remote_code: unknown key",
    ),
    "another option": ("text_cfg.tokenizer_kwargs", {"clean": "lower", "cache_dir": "/tmp"}, "cache_dir: unknown key"),
    "vocabulary file": ("text_cfg.tokenizer_kwargs", {"bpe_path": "/etc/passwd"}, "bpe_path: unknown key"),
    "revision": ("text_cfg.tokenizer_kwargs", {"revision": "evil"}, "revision: unknown key"),
    "clean is code": ("text_cfg.tokenizer_kwargs", {"clean": "__import__('os')"}, "clean"),
    "options are a list": ("text_cfg.tokenizer_kwargs", ["trust_remote_code"], "tokenizer_kwargs"),
    "option that the tokenizer lacks": ("text_cfg.tokenizer_kwargs", {"strip_sep_token": True}, "strip_sep_token"),
    "tokenizer is a list": ("text_cfg.hf_tokenizer_name", ["a"], "hf_tokenizer_name"),
    "tokenizer with a new line": ("text_cfg.hf_tokenizer_name", "a\nb", "hf_tokenizer_name"),
    "tokenizer mode": ("text_cfg.tokenizer_mode", "clips", "tokenizer_mode"),
    "text encoder in a folder": ("text_cfg.hf_model_name", "/tmp/evil", "open_clip's own configs name"),
    "text encoder of the hub": ("text_cfg.hf_model_name", "evil/model", "open_clip's own configs name"),
    "pooler": ("text_cfg.hf_pooler_type", "__class__()", "hf_pooler_type"),
    "timm model of the hub": ("vision_cfg.timm_model_name", "hf-hub:evil/model", "timm_model_name"),
    "timm model in a folder": ("vision_cfg.timm_model_name", "local-dir:/tmp/evil", "timm_model_name"),
    "timm model by path": ("vision_cfg.timm_model_name", "../evil", "timm_model_name"),
    "timm pool": ("vision_cfg.timm_pool", "a b", "timm_pool"),
    "timm projection": ("vision_cfg.timm_proj", "evil", "timm_proj"),
    "activation options": ("text_cfg.act_kwargs", {"inplace": True}, "inplace: unknown key"),
    "norm options": ("text_cfg.norm_kwargs", {"device": "cuda"}, "device: unknown key"),
    "norm of 0": ("text_cfg.norm_kwargs", {"eps": 0}, "eps"),
    "block type": ("text_cfg.block_type", "evil", "block_type"),
    "pool type": ("text_cfg.pool_type", "mean", "pool_type"),
    "projection type": ("text_cfg.proj_type", 3, "proj_type"),
    "pad id": ("text_cfg.pad_id", -1, "pad_id"),
    "heads do not divide": ("text_cfg.heads", 3, "heads: 3 does not divide width 16"),
    "head width does not divide": ("vision_cfg.head_width", 40, "does not divide 128 channels"),
    "head width over all channels": ("vision_cfg.head_width", 256, "does not divide 128 channels"),
    "three layers": ("vision_cfg.layers", [1, 1, 1], "layers"),
    "no blocks in a layer": ("vision_cfg.layers", [1, 1, 1, 0], "layers"),
    "layers of texts": ("vision_cfg.layers", ["1", "1", "1", "1"], "layers"),
    "10^9 blocks": ("vision_cfg.layers", [1, 1, 1, 10**9], "layers"),
    "nested layers": ("vision_cfg.layers", [[1], [1], [1], [1]], "layers"),
    "odd image size": ("vision_cfg.image_size", 65, "not a multiple of 32"),
    "three sides": ("vision_cfg.image_size", [64, 64, 64], "image_size"),
    "vocabulary below the tokenizer's": ("text_cfg.vocab_size", 1000, "less than the 49408 tokens"),
    "patch dropout of 1": ("vision_cfg.patch_dropout", 1.0, "patch_dropout"),
    "logit bias": ("init_logit_bias", "-10", "init_logit_bias"),
    "logit scale": ("init_logit_scale", 1e9, "init_logit_scale"),
    "quick_gelu": ("quick_gelu", "yes", "quick_gelu"),
    "custom_text": ("custom_text", 1, "custom_text"),
    "unknown key": ("colour", 1, "colour: unknown key"),
    "unknown key of a section": ("vision_cfg.colour", 1, "vision_cfg.colour: unknown key"),
    "key with a new line": ("a\nb", 1, "unknown key"),
    "type": ("cast_dtype", "float16", "cast_dtype: unknown key"),
    "decoder": ("multimodal_cfg", {"heads": 3}, "does not divide"),
    "no embed_dim": ("embed_dim", ..., "lacks embed_dim"),
    "no text": ("text_cfg", ..., "lacks text_cfg"),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_key_is_refused_by_name(tmp_path, tally, case):
    key, value, message = INVALID[case]
    (tmp_path / "m.json").write_text(json.dumps(with_value(TINY, key, value)))
    assert message in refused(tmp_path / "m.json", tally)


INVALID_VITS = {
    "patch of 0": ("vision_cfg.patch_size", 0, "patch_size"),
    "no patch": ("vision_cfg.patch_size", None, "patch_size: None does not fit"),
    "patch over the image": ("vision_cfg.patch_size", 65, "patch_size: 65 does not fit"),
    "too many tokens": ("vision_cfg", {**VIT["vision_cfg"], "image_size": 4096, "patch_size": 1}, "more than 16384 tokens"),
    "heads do not divide": ("vision_cfg.head_width", 20, "does not divide 64 channels"),
    "pooler heads do not divide": (
        "vision_cfg",
        {**VIT["vision_cfg"], "attentional_pool": True},
        "does not divide embed_dim 12",
    ),
    "attentional_pool": ("vision_cfg.attentional_pool", "evil", "attentional_pool"),
    "positions": ("vision_cfg.pos_embed_type", "evil", "pos_embed_type"),
}


@pytest.mark.parametrize("case", INVALID_VITS)
def test_an_invalid_vision_transformer_is_refused(tmp_path, tally, case):
    key, value, message = INVALID_VITS[case]
    (tmp_path / "m.json").write_text(json.dumps(with_value(VIT, key, value)))
    assert message in refused(tmp_path / "m.json", tally)


TIMM = TINY | {"vision_cfg": {"image_size": 64, "timm_model_name": "resnet50_clip_gap", "timm_pool": "rot_attn"}}
WRONG_TIMM = ["a b", "../evil", [], {"a": 1}, -1, 10**9, 1.5, 1e300]
TIMM_KEYS = [
    "timm_model_name",
    "timm_model_pretrained",
    "timm_pool",
    "timm_proj",
    "timm_proj_bias",
    "timm_drop",
    "timm_drop_path",
]


@pytest.mark.parametrize("key", [*TIMM_KEYS, "image_size"])
def test_a_key_of_timm_of_another_type_is_refused(tmp_path, tally, key):
    for value in WRONG_TIMM:
        (tmp_path / "m.json").write_text(json.dumps(with_value(TIMM, f"vision_cfg.{key}", value)))
        assert f"vision_cfg.{key}" in refused(tmp_path / "m.json", tally)


UNFIT_TIMM = {  # of valid type, but for no tower that nadpipe reads or timm builds
    "average pool": ("timm_pool", "avg", "nadpipe needs"),
    "two pools": ("timm_model_name", "resnet50_clip", "nadpipe needs"),
    "MLP": ("timm_proj", "mlp", "nadpipe needs"),
    "unknown pool": ("timm_pool", "evil", "nadpipe needs"),
    "unknown trunk": ("timm_model_name", "resnet50_evil", "nadpipe needs"),
    "trunk that begins like a known one": ("timm_model_name", "resnet50_clip_gap_evil", "nadpipe needs"),
    "unknown weights of a trunk": ("timm_model_name", "resnet50_clip_gap.evil", "open_clip cannot build this model config"),
    "trunk for which the checkpoint is too small": ("timm_model_name", "resnet50x64_clip_gap", "does not fit"),
    "weights of timm": ("timm_model_pretrained", True, "does not fit"),
}


@pytest.mark.parametrize("case", UNFIT_TIMM)
def test_a_timm_tower_that_does_not_fit_is_refused_without_its_weights(tmp_path, tiny_clip, monkeypatch, tally, case):
    """timm may neither download weights nor make those of the trunk."""
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **options: pytest.fail("weights are loaded"))
    save_file({name: value.contiguous() for name, value in tiny_clip.state_dict().items()}, tmp_path / "w.safetensors")
    key, value, message = UNFIT_TIMM[case]
    (tmp_path / "m.json").write_text(json.dumps(with_value(TIMM, f"vision_cfg.{key}", value)))
    with pytest.raises(NadpipeError, match=message) as error:
        load_model(str(tmp_path / "m.json"), str(tmp_path / "w.safetensors"), "cpu")
    tally("model configs", "\n" not in str(error.value))
    assert "\n" not in str(error.value)
    assert "m.json" in str(error.value)


PREPROCESSING = {
    "mean of two": {"mean": [0.5, 0.5]},
    "mean is a text": {"mean": "0.5"},
    "mean is infinite": {"mean": [1e999, 0, 0]},
    "std of 0": {"std": [0, 1, 1]},
    "std is a number": {"std": 1},
    "filter": {"interpolation": "evil"},
    "filter is a number": {"interpolation": 3},
    "resize mode": {"resize_mode": "evil"},
    "mode": {"mode": "L"},
    "size": {"size": 10**9},
    "colour": {"fill_color": -1},
}


@pytest.mark.parametrize("case", PREPROCESSING)
def test_invalid_preprocessing_is_refused(tmp_path, tally, case):
    content = json.dumps({"model_cfg": TINY, "preprocess_cfg": PREPROCESSING[case]})
    (tmp_path / "m.json").write_text(content)
    refused(tmp_path / "m.json", tally)


GOOD = json.dumps(TINY)
TEXTS = {
    "empty": b"",
    "cut": GOOD.encode()[:-5],
    "not UTF-8": GOOD.encode().replace(b"embed_dim", b"embed_dim\xff"),
    "UTF-16": GOOD.encode("utf-16"),
    "nul": b"\0" * 100,
    "text": b"embed_dim: 3",
    "a number": b"3",
    "a list": b"[]",
    "null": b"null",
    "two documents": GOOD.encode() * 2,
    "repeated key": GOOD.encode().replace(b'"embed_dim": 12', b'"embed_dim": 12, "embed_dim": 13'),
    "repeated key of a section": GOOD.encode().replace(b'"width": 16', b'"width": 16, "width": 32'),
    "NaN": GOOD.encode().replace(b'"embed_dim": 12', b'"embed_dim": NaN'),
    "infinity": GOOD.encode().replace(b'"embed_dim": 12', b'"embed_dim": Infinity'),
    "lone surrogate": GOOD.encode().replace(b'"heads"', b'"\\ud800": 1, "heads"'),
    "number of 10,000 digits": GOOD.encode().replace(b'"embed_dim": 12', b'"embed_dim": ' + b"9" * 10_000),
    "nested deeply": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "of 2 MiB": b" " * 2**21 + GOOD.encode(),
    "a pickle": b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.",
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_damaged_config_file_is_refused(tmp_path, tally, case):
    (tmp_path / "m.json").write_bytes(TEXTS[case])
    refused(tmp_path / "m.json", tally)


PLACES = {
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path),
    "missing": lambda path: None,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_config_that_is_no_file_is_refused(tmp_path, tally, place):
    PLACES[place](tmp_path / "m.json")
    refused(tmp_path / "m.json", tally)


@pytest.mark.parametrize("name", ["local-dir:/tmp", "local-dir:.", "http://x", "RN50:x", "../RN50", "RN50\n", "nul\0"])
def test_an_architecture_that_names_a_place_is_refused(tally, name):
    with pytest.raises(NadpipeError, match=r"^model\.architecture: open_clip has no model .*; use one of") as error:
        read_config(name, lambda config: True)
    tally("model configs", "\n" not in str(error.value))
    assert "\n" not in str(error.value)


def test_a_config_of_the_hub_is_checked(tmp_path, monkeypatch, tally):
    config = with_value(TINY, "text_cfg.tokenizer_kwargs", {"trust_remote_code": True})
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    monkeypatch.setattr(sources, "hf_hub_download", lambda name, file: str(tmp_path / file))
    with pytest.raises(NadpipeError, match=r"open_clip_config\.json: .*trust_remote_code: unknown key") as error:
        load_model("hf-hub:evil/model", None, "cpu")
    tally("model configs", "\n" not in str(error.value))


@pytest.mark.parametrize("name", open_clip.list_models())
def test_every_config_of_open_clip_is_accepted(name):
    config = open_clip.get_model_config(name)
    check_model_config(config, name)
    check_model_config({"quick_gelu": True, "init_logit_bias": -10.0, **config}, name)


def test_a_config_that_asks_for_more_than_the_checkpoint_takes_no_memory(tmp_path, tiny_clip, tally):
    """The model is built in outline first. Its embedding of texts alone would take 64 GiB."""
    save_file({name: value.contiguous() for name, value in tiny_clip.state_dict().items()}, tmp_path / "w.safetensors")
    text = {"context_length": 4096, "vocab_size": 10**6, "width": 16_384, "heads": 16, "layers": 2}
    (tmp_path / "m.json").write_text(json.dumps(TINY | {"text_cfg": text}))
    with pytest.raises(NadpipeError, match=r"w\.safetensors: does not fit .*m\.json: \d+ weights missing") as error:
        load_model(str(tmp_path / "m.json"), str(tmp_path / "w.safetensors"), "cpu")
    tally("model configs", "\n" not in str(error.value))


def test_an_outline_has_the_shapes_of_the_model(tiny_clip):
    with torch.device("meta"):
        outline = open_clip.CLIP(**copy.deepcopy(TINY))
    assert all(value.is_meta for value in outline.state_dict().values())
    shapes = {name: (value.shape, value.dtype) for name, value in tiny_clip.state_dict().items()}
    assert {name: (value.shape, value.dtype) for name, value in outline.state_dict().items()} == shapes
    check_fit(outline.state_dict(), tiny_clip.state_dict(), Path("w.pt"), "tiny")


class Tokenizer:
    """Stand in for transformers.AutoTokenizer; it keeps what it was called with."""

    calls: ClassVar[list] = []

    @classmethod
    def from_pretrained(cls, name, **options):
        cls.calls.append((name, options))
        return cls()

    def __call__(self, texts, max_length, **options):
        ids = torch.zeros(len(texts), max_length, dtype=torch.long)
        ids[:, 0], ids[:, 2] = 1, 49_407
        return types.SimpleNamespace(input_ids=ids)

    sep_token_id = 5


def test_a_tokenizer_of_the_hub_never_runs_code(tmp_path, tiny_clip, monkeypatch):
    """transformers is not a dependency; the test replaces it."""
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(AutoTokenizer=Tokenizer))
    save_file({name: value.contiguous() for name, value in tiny_clip.state_dict().items()}, tmp_path / "w.safetensors")
    text = {**TINY["text_cfg"], "hf_tokenizer_name": "org/name", "tokenizer_kwargs": {"strip_sep_token": True}}
    (tmp_path / "m.json").write_text(json.dumps(TINY | {"text_cfg": text}))
    model = load_model(str(tmp_path / "m.json"), str(tmp_path / "w.safetensors"), "cpu")
    assert text_tower(model).embed_texts(["fish"]).shape == (1, 12)
    assert Tokenizer.calls == [("org/name", {"cache_dir": None, "trust_remote_code": False})]


def test_a_missing_tokenizer_library_is_reported_in_one_line(tmp_path, tiny_clip, monkeypatch, tally):
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it fails
    save_file({name: value.contiguous() for name, value in tiny_clip.state_dict().items()}, tmp_path / "w.safetensors")
    (tmp_path / "m.json").write_text(json.dumps(with_value(TINY, "text_cfg.hf_tokenizer_name", "org/name")))
    model = load_model(str(tmp_path / "m.json"), str(tmp_path / "w.safetensors"), "cpu")
    with pytest.raises(NadpipeError, match=r"hf_tokenizer_name: cannot load .*org/name .*; install transformers") as error:
        text_tower(model)
    tally("model configs", "\n" not in str(error.value))
