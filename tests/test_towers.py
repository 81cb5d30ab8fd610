import copy
import dataclasses
import gc
import json
import pickle
import weakref
import zipfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import TINY
from open_clip.transform import image_transform_v2
from PIL import Image
from safetensors.torch import save_file

from nadpipe.circuit.attention import trace
from nadpipe.circuit.readout import coefficients, residual, sum_pairs
from nadpipe.data import views
from nadpipe.errors import NadpipeError
from nadpipe.towers import sources
from nadpipe.towers.checkpoints import state_sha256
from nadpipe.towers.clip_resnet import FAMILY, fold_batch_norms
from nadpipe.towers.model import load_model
from nadpipe.towers.preprocessing import Preprocessing
from nadpipe.towers.text import embed_prompts, text_tower


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return str(path)


def archive_as_openai(clip, path):
    """A TorchScript archive with the names and extras of the ones that OpenAI published, most weights in half precision."""
    clip = copy.deepcopy(clip)
    for module in clip.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.half()
    for name, value in {"input_resolution": 64, "context_length": 16, "vocab_size": 49408}.items():
        if hasattr(clip, name):
            delattr(clip, name)
        clip.register_buffer(name, torch.tensor(value))

    class Whole(torch.nn.Module):
        def __init__(self, clip):
            super().__init__()
            for name, value in clip.named_children():
                setattr(self, name, value)
            for name, value in [*clip.named_parameters(recurse=False), *clip.named_buffers(recurse=False)]:
                if isinstance(value, torch.nn.Parameter):
                    setattr(self, name, value)
                elif name != "attn_mask":
                    self.register_buffer(name, value)

        def forward(self, x):
            return x + self.logit_scale + self.input_resolution

    torch.jit.trace(Whole(clip), torch.zeros(1), check_trace=False).save(str(path))


def save(clip, form, path):
    state = clip.state_dict()
    if form == "safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    elif form == "state_dict":
        torch.save(state, path)
    elif form == "training":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    elif form == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        archive_as_openai(clip, path)


FORMS = {"safetensors": "w.safetensors", "state_dict": "w.pt", "training": "w.pt", "legacy": "w.pth", "openai": "w.pt"}


@pytest.mark.parametrize("form", FORMS)
def test_every_file_format_loads_the_same_weights(tmp_path, tiny_clip, config, form):
    source = copy.deepcopy(tiny_clip)
    for value in source.state_dict().values():  # exact in half precision, so that OpenAI's archive holds the same numbers
        if value.is_floating_point():
            value.copy_(value.half())
    save(source, form, tmp_path / FORMS[form])
    model = load_model(config, str(tmp_path / FORMS[form]), "cpu")
    for name, value in source.state_dict().items():
        torch.testing.assert_close(model.clip.state_dict()[name], value, rtol=0, atol=0)
    save(source, "safetensors", tmp_path / "same.safetensors")
    same = load_model(config, str(tmp_path / "same.safetensors"), "cpu").stamp == model.stamp
    assert same == (form != "openai")  # the archive means another activation, so other texts
    assert model.stamp.architecture == "tiny"
    assert model.config.get("quick_gelu", False) == (form == "openai")
    pixels = torch.randn(2, 3, 64, 64)
    tower = model.image_tower()
    z = z_of(tower, pixels)
    assert z.shape == (2, 4, 128)
    torch.testing.assert_close(tower.pool_embedding(z), source.encode_image(pixels), rtol=1e-4, atol=1e-6)


def test_the_hash_changes_with_any_weight(tiny_clip):
    state = tiny_clip.state_dict()
    changed = {**state, "logit_scale": state["logit_scale"] + 1e-6}
    assert state_sha256(state) != state_sha256(changed)
    assert state_sha256(state) == state_sha256(dict(reversed(state.items())))


def test_models_with_the_same_weights_have_different_stamps(tmp_path, tiny_clip, config):
    save(tiny_clip, "safetensors", tmp_path / "w.safetensors")
    stamps = [load_model(config, str(tmp_path / "w.safetensors"), "cpu").stamp.model]
    for number, change in enumerate([{"vision_cfg": {**TINY["vision_cfg"], "head_width": 64}}, {"quick_gelu": True}]):
        other = tmp_path / f"other{number}.json"
        other.write_text(json.dumps(TINY | change))
        stamps.append(load_model(str(other), str(tmp_path / "w.safetensors"), "cpu").stamp.model)
    assert len(set(stamps)) == 3


@pytest.fixture
def tiny(tmp_path, tiny_clip, config):
    save(tiny_clip, "safetensors", tmp_path / "w.safetensors")
    return load_model(config, str(tmp_path / "w.safetensors"), "cpu")


def z_of(tower, pixels):
    return tower.features(pixels)["activation"]


def sum_of_pairs(z, pool):
    return sum_pairs(coefficients(trace(z, pool), pool.readout), pool.readout)


def test_pairs_sum_to_encode_image_of_the_whole_model(tiny, tiny_clip):
    pixels = torch.randn(3, 3, 64, 64)
    summed = sum_of_pairs(z_of(tiny.image_tower(), pixels), tiny.image_tower().pool)
    assert residual(summed, tiny_clip.encode_image(pixels)).max() < 1e-5


def test_views_of_another_size_sum_to_the_model_with_interpolated_positions(tiny):
    pixels = torch.randn(2, 3, 160, 160)
    tower = tiny.image_tower(image_size=160)
    expected = tower.reference_embedding(pixels)
    assert tower.pool.grid == 5
    assert tower.preprocessing.image_size == 160
    z = z_of(tower, pixels)
    summed = sum_of_pairs(z, tower.pool)
    assert residual(summed, expected).max() < 1e-5
    assert residual(tower.pool_embedding(z), expected).max() < 1e-5
    with pytest.raises(NadpipeError, match=r"^segmentation\.crop: 90 pixels .* multiple of 32"):
        tiny.image_tower(image_size=90)


def test_opening_towers_in_any_order_leaves_the_model_unchanged(tiny, tiny_clip):
    pixels, large = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 96, 96)
    before = {name: value.clone() for name, value in tiny.clip.state_dict().items()}
    strides = {name: value.stride() for name, value in before.items()}
    towers = [tiny.image_tower(*options) for options in [(), ("bfloat16", 96, None, 0), (), ("float32", 96)]]
    for name, value in tiny.clip.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.stride() == strides[name]
    assert towers[1].reference_embedding(large).shape == (2, 12)
    for tower in (towers[0], towers[2]):
        torch.testing.assert_close(tower.reference_embedding(pixels), tiny_clip.encode_image(pixels), rtol=0, atol=0)
        assert torch.equal(tower.embedding(pixels), towers[0].embedding(pixels))
    assert torch.equal(towers[3].reference_embedding(large), towers[1].reference_embedding(large))
    assert tiny.preprocessing.image_size == 64
    assert tiny.image_tower().pool.grid == 2


def test_a_tower_without_its_reference_is_the_same_and_frees_the_weights(tmp_path, tiny_clip, config):
    save(tiny_clip, "safetensors", tmp_path / "w.safetensors")
    model = load_model(config, str(tmp_path / "w.safetensors"), "cpu")
    weights, norm = (weakref.ref(module) for module in (model.clip.visual.conv1, model.clip.visual.layer4[0].bn2))
    tower = model.image_tower()
    pixels = torch.randn(2, 3, 64, 64)
    expected = z_of(tower, pixels)
    tower.reference_embedding(pixels)
    del model
    tower = tower.without_reference()
    gc.collect()
    assert weights() is None
    assert norm() is None
    assert torch.equal(z_of(tower, pixels), expected)
    with pytest.raises(RuntimeError, match="without_reference"):
        tower.reference_embedding(pixels)


def test_later_blocks_continue_from_the_activations_of_an_earlier_block(config, tmp_path):
    torch.manual_seed(0)
    deep = json.loads(Path(config).read_text())
    deep["vision_cfg"]["layers"] = [1, 1, 1, 3]
    Path(config).write_text(json.dumps(deep))
    save(open_clip.CLIP(**deep).eval(), "safetensors", tmp_path / "deep.safetensors")
    model = load_model(config, str(tmp_path / "deep.safetensors"), "cpu")
    pixels = torch.randn(2, 3, 64, 64)
    tower, last = model.image_tower(shown_block=1), model.image_tower()
    assert (tower.block, last.block) == (1, 2)
    maps = z_of(tower, pixels).transpose(1, 2).unflatten(2, (2, 2))
    torch.testing.assert_close(last.blocks[2](maps).flatten(2).transpose(1, 2), z_of(last, pixels))
    torch.testing.assert_close(z_of(model.image_tower(shown_block=2), pixels), z_of(last, pixels))
    torch.testing.assert_close(tower.embedding(pixels), tower.reference_embedding(pixels), rtol=1e-4, atol=1e-6)
    for block in (3, -1):
        with pytest.raises(NadpipeError, match=rf"^segmentation\.block: .* no block {block}; choose one from 0 to 2"):
            model.image_tower(shown_block=block)


def test_folding_batch_norms_changes_nothing_but_rounding(tiny_clip):
    double = copy.deepcopy(tiny_clip.visual).double()
    pixels = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    expected = double(pixels)
    folded = fold_batch_norms(double)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(pixels), expected, rtol=1e-10, atol=1e-12)
    single = fold_batch_norms(tiny_clip.visual)
    assert single.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert residual(single(pixels.float()).double(), expected).max() < 1e-5


def test_bfloat16_is_close(tiny):
    pixels = torch.randn(5, 3, 64, 64)
    exact, low = tiny.image_tower(), tiny.image_tower("bfloat16")
    z, rough = z_of(exact, pixels), z_of(low, pixels)
    assert rough.dtype == torch.float32
    error = residual(exact.pool_embedding(rough), exact.pool_embedding(z)).max()
    assert 1e-5 < error < 0.1


def test_texts_are_averaged_over_templates(tiny, tiny_clip):
    templates = ("{}", "a photo of {}")
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    expected = []
    for text in ("fish", "a {b}"):
        prompts = tiny_clip.encode_text(tokenizer([text, f"a photo of {text}"]), normalize=True).mean(0)
        expected.append(prompts / prompts.norm())
    torch.testing.assert_close(embed_prompts(text_tower(tiny), ["fish", "a {b}"], templates), torch.stack(expected))


TOWERS = {  # config, and whether tokens after the end token may be cut
    "as published": ({}, {}, True),
    "custom text": ({"custom_text": True}, {}, True),
    "eos": ({}, {"pool_type": "eos", "eos_id": 49407}, True),
    "custom eos": ({"custom_text": True}, {"pool_type": "eos", "eos_id": 49407, "proj_bias": True}, True),
    "no projection": ({"custom_text": True}, {"proj_type": "none", "width": 12}, True),
    "custom blocks": ({"custom_text": True}, {"scale_heads": True, "qk_norm": True}, True),
    "pooled last": ({}, {"pool_type": "last"}, False),
    "looks ahead": ({"custom_text": True}, {"no_causal_mask": True, "pad_id": 0}, False),
    "class token": ({"custom_text": True}, {"embed_cls": True}, False),
}
PROMPTS = [
    "fish",
    "",
    "a photo of a very long list of things that just fits into sixteen",
    "the end<end_of_text>and more",
    "a {b}",
    "an extraordinarily antidisestablishmentarian fish",
    "fish",
]


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_texts_cut_after_their_end_token_embed_as_in_open_clip(tmp_path, monkeypatch, tower, batch_size):
    config, text_cfg, cut = TOWERS[tower]
    if "eos_id" in text_cfg and "eos_id" not in open_clip.CLIPTextCfg.__dataclass_fields__:
        pytest.skip(f"open_clip {open_clip.__version__} does not pool at the tokeniser's own end token")
    config = TINY | config | {"text_cfg": TINY["text_cfg"] | {"layers": 2} | text_cfg}
    (tmp_path / "m.json").write_text(json.dumps(config))
    torch.manual_seed(4)
    custom = config.pop("custom_text", False)
    clip = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**copy.deepcopy(config)).eval()
    for name, value in clip.named_parameters():
        if name.removeprefix("text.") in ("positional_embedding", "token_embedding.weight"):
            torch.nn.init.normal_(value)  # large, so that a token too many or too few shows
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, tmp_path / "w.safetensors")
    model = load_model(str(tmp_path / "m.json"), str(tmp_path / "w.safetensors"), "cpu")
    lengths = []
    transformer = (model.clip.text if custom else model.clip).transformer
    forward = transformer.forward
    monkeypatch.setattr(transformer, "forward", lambda x, **options: lengths.append(x.shape[1]) or forward(x, **options))
    with torch.inference_mode():
        embedding = text_tower(model).embed_texts(PROMPTS, batch_size)
        expected = clip.encode_text(open_clip.SimpleTokenizer(context_length=16)(PROMPTS))
    torch.testing.assert_close(embedding, expected, rtol=1e-4, atol=1e-5)
    full = 17 if tower == "class token" else 16
    ends = [2, 3, 3, 4, 6, 12, 16]  # of the prompts, shortest first
    step = batch_size or len(ends)
    assert lengths == ([max(ends[start : start + step]) for start in range(0, 7, step)] if cut else [full] * -(-7 // step))


def test_a_text_that_just_fits_the_context_is_embedded(tiny):
    tower = text_tower(tiny)
    assert tower.embed_texts(["a " * 14]).shape == (1, 12)  # and a start and an end
    with pytest.raises(NadpipeError, match="longer than the model's 16 tokens"):
        tower.embed_texts(["fish", "a " * 15])


def test_prompts_embed_alike_in_steps_of_any_size(tiny):
    templates = ("{}", "a photo of {} there", "{} of many and many more")
    texts = ["fish", "a very long name of a fish", "", "b"]
    tower = text_tower(tiny)
    at_once = embed_prompts(tower, texts, templates)
    for batch_size in (1, 5, 100):
        torch.testing.assert_close(embed_prompts(tower, texts, templates, batch_size), at_once, rtol=1e-4, atol=1e-6)
    one_by_one = torch.cat([embed_prompts(tower, [text], templates) for text in texts])
    torch.testing.assert_close(one_by_one, at_once, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (64, 97), (131, 64), (333, 200), (20, 300), (20, 310), (1, 1)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_the_centre_view_is_the_models_own_preprocessing(tiny, size, mode):
    height, width = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    preprocessing = dataclasses.replace(tiny.preprocessing, resize_mode=mode, fill_color=99)
    config = open_clip.transform.PreprocessCfg(size=64, resize_mode=mode, fill_color=99)
    expected = image_transform_v2(config, is_train=False)(picture)
    box = views.centre_box(height, width, preprocessing.image_size, mode)
    mine = views.crop_pixels(picture, box, preprocessing.interpolation, preprocessing.fill_color)
    mine = preprocessing.normalise(torch.from_numpy(mine))
    np.testing.assert_allclose(mine[0], expected.numpy(), atol=1e-5)
    assert mine.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "RN50-quickgelu"])
def test_the_published_resnets_are_accepted_by_name_and_ask_for_weights(name):
    config, _ = sources.read_config(name, FAMILY.accepts)
    assert FAMILY.accepts(config)
    with pytest.raises(NadpipeError, match=r"^model\.pretrained: no weights"):
        load_model(name, None, "cpu")
    with pytest.raises(NadpipeError, match=f"neither a file nor a tag of {name}"):
        load_model(name, "no_such_tag", "cpu")


@pytest.mark.parametrize("name", ["convnext_base", "ViT-H-14-CLIPA"])
def test_other_towers_are_refused_before_weights_are_loaded(name):
    with pytest.raises(NadpipeError, match=r"image tower is .*; nadpipe needs a CLIP-ResNet"):
        load_model(name, "no_such_tag", "cpu")


def test_an_unknown_architecture_is_reported_with_the_supported_ones():
    with pytest.raises(NadpipeError, match=r"no model RN51; .* RN50, RN50-quickgelu, RN50x4"):
        load_model("RN51", "openai", "cpu")


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_only_tensors_are_unpickled(tmp_path, tiny_clip, config, capsys):
    torch.save({"state_dict": tiny_clip.state_dict(), "extra": Evil()}, tmp_path / "evil.pt")
    archive_as_openai(tiny_clip, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "evil_archive.pt", "w") as evil:
        for name in good.namelist():
            evil.writestr(name, pickle.dumps(Evil(), 2) if name.endswith("/data.pkl") else good.read(name))
    for file in ("evil.pt", "evil_archive.pt"):
        with pytest.raises(NadpipeError, match=f"{file}: not readable"):
            load_model(config, str(tmp_path / file), "cpu")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x00" * 100])
def test_broken_checkpoints_are_reported_in_one_line(tmp_path, config, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NadpipeError) as error:
        load_model(config, str(tmp_path / name), "cpu")
    assert "\n" not in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_truncated_checkpoints_are_reported_in_one_line(tmp_path, tiny_clip, config, name):
    save(tiny_clip, "safetensors" if name.endswith("s") else "state_dict", tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(NadpipeError, match="not readable"):
        load_model(config, str(tmp_path / name), "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("visual.conv1.weight"), "1 weights missing, first visual.conv1.weight"),
        (lambda state: state.update(more=torch.zeros(1)), "1 weights unknown, first more"),
        (lambda state: state.update(logit_scale=torch.zeros(2)), "1 weights of another shape, first logit_scale"),
        (lambda state: state.update(logit_scale=torch.tensor(torch.nan)), "1 weights hold NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit_are_reported(tmp_path, tiny_clip, config, change, message):
    state = dict(tiny_clip.state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(NadpipeError, match=message):
        load_model(config, str(tmp_path / "w.pt"), "cpu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a readable model config"),
        ("[]", "lacks embed_dim"),
        ('{"embed_dim": 3}', "lacks vision_cfg, text_cfg"),
        (json.dumps(TINY | {"colour": 1}), "model config: colour: unknown key"),
    ],
)
def test_a_broken_model_config_is_reported_in_one_line(tmp_path, content, message):
    (tmp_path / "m.json").write_text(content)
    torch.save({}, tmp_path / "x.pt")
    with pytest.raises(NadpipeError, match=message):
        load_model(str(tmp_path / "m.json"), str(tmp_path / "x.pt"), "cpu")


def test_a_published_config_with_its_preprocessing_is_read(tmp_path, tiny_clip):
    content = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "interpolation": "bilinear"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    save(tiny_clip, "safetensors", tmp_path / "w.safetensors")
    model = load_model(str(tmp_path / "open_clip_config.json"), str(tmp_path / "w.safetensors"), "cpu")
    assert model.preprocessing == Preprocessing(64, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), "bilinear")
    stamps = {model.stamp}
    for mode in ("squash", "longest"):
        content["preprocess_cfg"] |= {"resize_mode": mode, "fill_color": 7}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
        model = load_model(str(tmp_path / "open_clip_config.json"), str(tmp_path / "w.safetensors"), "cpu")
        assert model.preprocessing.resize_mode == mode
        assert model.preprocessing.fill_color == (7 if mode == "longest" else 0)
        stamps.add(model.stamp)
    assert len(stamps) == 3


def test_a_failed_download_from_the_hub_is_reported_in_one_line(monkeypatch, tmp_path, tiny_clip, config):
    """The hub's client is replaced by functions that return local files, because tests have no network."""
    save(tiny_clip, "safetensors", tmp_path / "open_clip_model.safetensors")
    requests = []
    monkeypatch.setattr(sources, "hf_hub_download", lambda name, file: requests.append((name, file)) or config)
    monkeypatch.setattr(
        sources,
        "download_pretrained_from_hf",
        lambda name: requests.append(name) or str(tmp_path / "open_clip_model.safetensors"),
    )
    model = load_model("hf-hub:org/tiny", None, "cpu")
    assert requests == [("org/tiny", "open_clip_config.json"), "org/tiny"]
    assert model.stamp.architecture == "hf-hub:org/tiny"

    def offline(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr(sources, "hf_hub_download", offline)
    with pytest.raises(NadpipeError, match=r"hf-hub:org/tiny: .* hub \(ConnectionError\)"):
        load_model("hf-hub:org/tiny", None, "cpu")


@pytest.mark.slow
def test_a_pretrained_tag_is_downloaded_and_brings_its_activation(monkeypatch, tmp_path):
    torch.manual_seed(0)
    clip = open_clip.CLIP(**open_clip.get_model_config("RN50"))
    torch.save(clip.state_dict(), tmp_path / "rn50.pt")
    monkeypatch.setattr(sources, "download_pretrained", lambda tag: str(tmp_path / "rn50.pt"))
    model = load_model("RN50", "openai", "cpu")
    assert model.config["quick_gelu"] is True
    assert model.image_tower().pool.heads == 32
    assert model.preprocessing.image_size == 224


def test_a_missing_device_is_reported_in_one_line(config, tmp_path, tiny_clip):
    save(tiny_clip, "safetensors", tmp_path / "w.safetensors")
    with pytest.raises(NadpipeError, match="device: nonsense is not usable here"):
        load_model(config, str(tmp_path / "w.safetensors"), "nonsense")
