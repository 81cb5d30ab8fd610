import copy
import json
import pickle
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

from nadpipe import attnpool, models, views
from nadpipe.errors import NadpipeError


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
    model = models.load_model(config, str(tmp_path / FORMS[form]), "cpu")
    for name, value in source.state_dict().items():
        torch.testing.assert_close(model.clip.state_dict()[name], value, rtol=0, atol=0)
    save(source, "safetensors", tmp_path / "same.safetensors")
    same = models.load_model(config, str(tmp_path / "same.safetensors"), "cpu").stamp == model.stamp
    assert same == (form != "openai")  # the archive means another activation, so other texts
    assert model.stamp.architecture == "tiny"
    assert model.config.get("quick_gelu", False) == (form == "openai")
    pixels = torch.randn(2, 3, 64, 64)
    tower = models.image_tower(model)
    z = tower.activations(pixels)
    assert z.shape == (2, 4, 128)
    torch.testing.assert_close(tower.pool(z), source.encode_image(pixels), rtol=1e-4, atol=1e-6)


def test_the_hash_tells_weights_apart(tiny_clip):
    state = tiny_clip.state_dict()
    changed = {**state, "logit_scale": state["logit_scale"] + 1e-6}
    assert models.state_sha256(state) != models.state_sha256(changed)
    assert models.state_sha256(state) == models.state_sha256(dict(reversed(state.items())))


def test_the_stamp_tells_models_apart_that_share_their_weights(tmp_path, tiny_clip, config):
    save(tiny_clip, "safetensors", tmp_path / "w.safetensors")
    stamps = [models.load_model(config, str(tmp_path / "w.safetensors"), "cpu").stamp.model]
    for number, change in enumerate([{"vision_cfg": {**TINY["vision_cfg"], "head_width": 64}}, {"quick_gelu": True}]):
        other = tmp_path / f"other{number}.json"
        other.write_text(json.dumps(TINY | change))
        stamps.append(models.load_model(str(other), str(tmp_path / "w.safetensors"), "cpu").stamp.model)
    assert len(set(stamps)) == 3


@pytest.fixture
def tiny(tmp_path, tiny_clip, config):
    save(tiny_clip, "safetensors", tmp_path / "w.safetensors")
    return models.load_model(config, str(tmp_path / "w.safetensors"), "cpu")


def test_pairs_sum_to_encode_image_of_the_whole_model(tiny, tiny_clip):
    pixels = torch.randn(3, 3, 64, 64)
    pool = models.attention_pool(tiny)
    z = models.image_tower(tiny).activations(pixels)
    x = attnpool.tokens(z, pool)
    summed = attnpool.sum_pairs(attnpool.coefficients(attnpool.attention(x, pool), x), pool)
    assert attnpool.residual(summed, tiny_clip.encode_image(pixels)).max() < 1e-5


def test_views_of_another_size_sum_to_the_model_with_interpolated_positions(tiny):
    models.set_image_size(tiny, 160)
    pixels = torch.randn(2, 3, 160, 160)
    expected = tiny.encode_image(pixels)
    pool = models.attention_pool(tiny)
    assert pool.grid == 5
    tower = models.image_tower(tiny)
    z = tower.activations(pixels)
    x = attnpool.tokens(z, pool)
    summed = attnpool.sum_pairs(attnpool.coefficients(attnpool.attention(x, pool), x), pool)
    assert attnpool.residual(summed, expected).max() < 1e-5
    assert attnpool.residual(tower.pool(z), expected).max() < 1e-5
    with pytest.raises(NadpipeError, match="images of 90 pixels: the side must be a multiple of 32"):
        models.set_image_size(tiny, 90)


def test_activations_of_an_earlier_block_are_those_that_the_rest_continues_from(config, tmp_path):
    torch.manual_seed(0)
    deep = json.loads(Path(config).read_text())
    deep["vision_cfg"]["layers"] = [1, 1, 1, 3]
    Path(config).write_text(json.dumps(deep))
    save(open_clip.CLIP(**deep).eval(), "safetensors", tmp_path / "deep.safetensors")
    model = models.load_model(config, str(tmp_path / "deep.safetensors"), "cpu")
    assert models.last_blocks(model) == 3
    tower = models.image_tower(model)
    pixels = torch.randn(2, 3, 64, 64)
    z = tower.activations(pixels, 1)
    maps = z.transpose(1, 2).unflatten(2, (2, 2))
    torch.testing.assert_close(tower.visual.layer4[2](maps).flatten(2).transpose(1, 2), tower.activations(pixels))
    torch.testing.assert_close(tower.activations(pixels, 2), tower.activations(pixels))


def test_folding_batch_norms_changes_nothing_but_rounding(tiny_clip):
    double = copy.deepcopy(tiny_clip.visual).double()
    pixels = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    expected = double(pixels)
    folded = models.fold_batch_norms(copy.deepcopy(double))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(pixels), expected, rtol=1e-10, atol=1e-12)
    single = models.fold_batch_norms(copy.deepcopy(tiny_clip.visual)).to(memory_format=torch.channels_last)
    assert attnpool.residual(single(pixels.float()).double(), expected).max() < 1e-5


def test_bfloat16_is_close(tiny):
    pixels = torch.randn(5, 3, 64, 64)
    exact = models.image_tower(tiny)
    low = models.image_tower(tiny, "bfloat16")
    z, rough = exact.activations(pixels), low.activations(pixels)
    assert rough.dtype == torch.float32
    error = attnpool.residual(exact.pool(rough), exact.pool(z)).max()
    assert 1e-5 < error < 0.1


def test_texts_are_averaged_over_templates(tiny, tiny_clip):
    templates = ("{}", "a photo of {}")
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    expected = []
    for text in ("fish", "a {b}"):
        prompts = tiny_clip.encode_text(tokenizer([text, f"a photo of {text}"]), normalize=True).mean(0)
        expected.append(prompts / prompts.norm())
    torch.testing.assert_close(models.embed_prompts(tiny, ["fish", "a {b}"], templates), torch.stack(expected))


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
def test_texts_cut_behind_their_end_embed_as_open_clip_has_them(tmp_path, monkeypatch, tower, batch_size):
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
    model = models.load_model(str(tmp_path / "m.json"), str(tmp_path / "w.safetensors"), "cpu")
    lengths = []
    transformer = (model.clip.text if custom else model.clip).transformer
    whole = transformer.forward
    monkeypatch.setattr(transformer, "forward", lambda x, **options: lengths.append(x.shape[1]) or whole(x, **options))
    with torch.inference_mode():
        found = model.embed_texts(PROMPTS, batch_size)
        expected = clip.encode_text(open_clip.SimpleTokenizer(context_length=16)(PROMPTS))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    full = 17 if tower == "class token" else 16
    ends = [2, 3, 3, 4, 6, 12, 16]  # of the prompts, shortest first
    step = batch_size or len(ends)
    assert lengths == ([max(ends[at : at + step]) for at in range(0, 7, step)] if cut else [full] * -(-7 // step))


def test_a_text_that_just_fits_the_context_is_embedded(tiny):
    assert tiny.embed_texts(["a " * 14]).shape == (1, 12)  # and a start and an end
    with pytest.raises(NadpipeError, match="longer than the model's 16 tokens"):
        tiny.embed_texts(["fish", "a " * 15])


def test_prompts_embed_alike_in_steps_of_any_size(tiny):
    templates = ("{}", "a photo of {} there", "{} of many and many more")
    texts = ["fish", "a very long name of a fish", "", "b"]
    whole = models.embed_prompts(tiny, texts, templates)
    for batch_size in (1, 5, 100):
        torch.testing.assert_close(models.embed_prompts(tiny, texts, templates, batch_size), whole, rtol=1e-4, atol=1e-6)
    one_by_one = torch.cat([models.embed_prompts(tiny, [text], templates) for text in texts])
    torch.testing.assert_close(one_by_one, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (64, 97), (131, 64), (333, 200), (20, 300), (1, 1)])
def test_the_centre_crop_is_the_models_own_preprocessing(tiny, size):
    height, width = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    how = tiny.preprocessing
    own = image_transform_v2(open_clip.transform.PreprocessCfg(size=64), is_train=False)(picture)
    box = views.centre_box(height, width, how.image_size)
    mine = how.normalise(torch.from_numpy(views.crop_pixels(picture, box, how.interpolation)))
    np.testing.assert_allclose(mine[0], own.numpy(), atol=1e-5)
    assert mine.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "RN50-quickgelu"])
def test_the_published_resnets_are_accepted_by_name_and_ask_for_weights(name):
    config, _ = models._read_config(name)
    models._refuse_other_towers(name, config)
    with pytest.raises(NadpipeError, match="name a pretrained tag"):
        models.load_model(name, None, "cpu")
    with pytest.raises(NadpipeError, match=f"neither a file nor a tag of {name}"):
        models.load_model(name, "no_such_tag", "cpu")


@pytest.mark.parametrize("name", ["ViT-B-32", "convnext_base", "coca_ViT-B-32"])
def test_other_towers_are_refused_with_what_nadpipe_needs(name, tmp_path):
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(NadpipeError, match=r"image tower is .*; nadpipe needs a CLIP-ResNet"):
        models.load_model(name, str(tmp_path / "w.pt"), "cpu")


def test_an_unknown_architecture_lists_the_known_ones():
    with pytest.raises(NadpipeError, match="no model RN51; CLIP-ResNets are RN50, RN50-quickgelu, RN50x4"):
        models.load_model("RN51", "openai", "cpu")


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_but_tensors_is_unpickled(tmp_path, tiny_clip, config, capsys):
    torch.save({"state_dict": tiny_clip.state_dict(), "extra": Evil()}, tmp_path / "evil.pt")
    archive_as_openai(tiny_clip, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "evil_archive.pt", "w") as evil:
        for name in good.namelist():
            evil.writestr(name, pickle.dumps(Evil(), 2) if name.endswith("/data.pkl") else good.read(name))
    for file in ("evil.pt", "evil_archive.pt"):
        with pytest.raises(NadpipeError, match=f"{file}: not readable as"):
            models.load_model(config, str(tmp_path / file), "cpu")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x00" * 100])
def test_broken_checkpoints_are_one_line(tmp_path, config, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NadpipeError) as error:
        models.load_model(config, str(tmp_path / name), "cpu")
    assert "\n" not in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_truncated_checkpoints_are_one_line(tmp_path, tiny_clip, config, name):
    save(tiny_clip, "safetensors" if name.endswith("s") else "state_dict", tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NadpipeError, match="not readable as"):
        models.load_model(config, str(tmp_path / name), "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("visual.conv1.weight"), "1 weights missing, first visual.conv1.weight"),
        (lambda state: state.update(more=torch.zeros(1)), "1 weights unknown, first more"),
        (lambda state: state.update(logit_scale=torch.zeros(2)), "1 weights of another shape, first logit_scale"),
        (lambda state: state.update(logit_scale=torch.tensor(torch.nan)), "1 weights hold NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, tiny_clip, config, change, message):
    state = dict(tiny_clip.state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(NadpipeError, match=message):
        models.load_model(config, str(tmp_path / "w.pt"), "cpu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no readable model config JSON"),
        ('{"embed_dim": 3}', "vision_cfg, text_cfg missing"),
        (json.dumps(TINY | {"colour": 1}), "open_clip cannot build this model config"),
    ],
)
def test_a_broken_model_config_is_one_line(tmp_path, content, message):
    (tmp_path / "m.json").write_text(content)
    torch.save({}, tmp_path / "x.pt")
    with pytest.raises(NadpipeError, match=message):
        models.load_model(str(tmp_path / "m.json"), str(tmp_path / "x.pt"), "cpu")


def test_a_published_config_with_its_preprocessing_is_read(tmp_path, tiny_clip):
    content = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "interpolation": "bilinear"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    save(tiny_clip, "safetensors", tmp_path / "w.safetensors")
    model = models.load_model(str(tmp_path / "open_clip_config.json"), str(tmp_path / "w.safetensors"), "cpu")
    assert model.preprocessing == models.Preprocessing(64, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), "bilinear")
    content["preprocess_cfg"]["resize_mode"] = "squash"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(NadpipeError, match="resize_mode squash"):
        models.load_model(str(tmp_path / "open_clip_config.json"), str(tmp_path / "w.safetensors"), "cpu")


def test_the_hub_is_asked_and_its_absence_is_one_line(monkeypatch, tmp_path, tiny_clip, config):
    """No network here: what the hub's client returns is stood in for by local files of the same form."""
    save(tiny_clip, "safetensors", tmp_path / "open_clip_model.safetensors")
    asked = []
    monkeypatch.setattr(models, "hf_hub_download", lambda name, file: asked.append((name, file)) or config)
    monkeypatch.setattr(
        models, "download_pretrained_from_hf", lambda name: asked.append(name) or str(tmp_path / "open_clip_model.safetensors")
    )
    model = models.load_model("hf-hub:org/tiny", None, "cpu")
    assert asked == [("org/tiny", "open_clip_config.json"), "org/tiny"]
    assert model.stamp.architecture == "hf-hub:org/tiny"

    def offline(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr(models, "hf_hub_download", offline)
    with pytest.raises(NadpipeError, match=r"hf-hub:org/tiny: cannot be fetched from the hub \(ConnectionError\)"):
        models.load_model("hf-hub:org/tiny", None, "cpu")


def test_a_pretrained_tag_is_downloaded_and_brings_its_activation(monkeypatch, tmp_path):
    torch.manual_seed(0)
    clip = open_clip.CLIP(**open_clip.get_model_config("RN50"))
    torch.save(clip.state_dict(), tmp_path / "rn50.pt")
    monkeypatch.setattr(models, "download_pretrained", lambda tag: str(tmp_path / "rn50.pt"))
    model = models.load_model("RN50", "openai", "cpu")
    assert model.config["quick_gelu"] is True
    assert models.attention_pool(model).heads == 32
    assert model.preprocessing.image_size == 224


def test_a_device_that_is_not_there_is_one_line(config, tmp_path, tiny_clip):
    save(tiny_clip, "safetensors", tmp_path / "w.safetensors")
    with pytest.raises(NadpipeError, match="device: nonsense is not usable here"):
        models.load_model(config, str(tmp_path / "w.safetensors"), "nonsense")
