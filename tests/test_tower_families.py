"""Transformers of every family, against an independent float64 reference and against the running model."""

import contextlib
import copy
import functools
import json

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, stir
from open_clip.timm_model import TimmModel
from safetensors.torch import save_file
from timm.layers import HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from tower_families import (
    COCA,
    EMBED,
    FAMILIES,
    POOLED,
    SIZE,
    TIMM,
    VIEWS,
    Reference,
    find_family,
    make_visual,
    open_tower,
    pixels,
    timm_name,
)

from nadpipe.circuit.attention import view_trace
from nadpipe.circuit.readout import coefficients, other_paths, residual, sum_pairs, write_vectors
from nadpipe.errors import NadpipeError
from nadpipe.towers import model as models
from nadpipe.towers import sources, timm_vit, vit
from nadpipe.towers.model import FAMILIES as KNOWN
from nadpipe.towers.model import load_model
from nadpipe.towers.model_config import check_model_config
from nadpipe.towers.preprocessing import Preprocessing
from nadpipe.towers.text import text_tower


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block", [0, None])
def test_pairs_paths_and_recipes_are_those_of_a_float64_reference(family, block):
    tower = open_tower(family, block=block)
    block = tower.block
    assert block == (2 if family in POOLED else 1) or block == 0
    features = tower.features(pixels(), tokens=True)
    trace, readout = view_trace(features, None), tower.readout
    coefficient = coefficients(trace, readout)
    write = torch.stack([write_vectors(readout, head) for head in range(readout.heads)])
    for view, image in enumerate(pixels()):
        reference = Reference(family, image)
        assert readout.layer.tolist() == [late for late, _ in reference.late_heads(block)]
        np.testing.assert_allclose(features["embedding"][view], reference.embedding, rtol=1e-4, atol=2e-5)
        pairs = reference.pairs(block)
        own = (coefficient[view, :, :, None] * write).numpy()
        np.testing.assert_allclose(own, pairs, atol=1e-5 * np.abs(pairs).max())
        paths = reference.paths(block)
        assert tower.parts == tuple(paths)
        np.testing.assert_allclose(features["part"][view], np.array([*paths.values()]), rtol=1e-4, atol=2e-5)
        for number, recipe in enumerate(tower.recipes):
            expected = reference.recipe(recipe)
            np.testing.assert_allclose(features["token_embedding"][view, number], expected, rtol=1e-3, atol=1e-4)
    rest = other_paths(trace, readout)
    summed = sum_pairs(coefficient, readout)
    reference = tower.reference_embedding(pixels())
    assert residual(tower.reference_embedding(pixels(), torch.float64), reference.double()).max() < 1e-5
    assert residual(summed + rest, reference).max() < 1e-5
    assert residual(tower.rebuild(features), reference).max() < 1e-5
    for term in (summed, rest):  # none is too small to matter
        assert (term.norm(dim=1) > 0.01 * reference.norm(dim=1)).all()
    assert tower.parts[-1][0] in ("shift", "mlp")


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_attention_sum_to_one_over_the_tokens_that_heads_read(family):
    tower = open_tower(family)
    features = tower.features(pixels())
    prefix = {"siglip": 0, "siglip, unread prefix": 0, "siglip, read registers": 2, "pe core, no class token": 0}
    prefix |= {"timm vit, registers": 4}
    assert tower.prefix == prefix.get(family, 1)
    assert features["attention"].shape == (VIEWS, tower.readout.heads, tower.prefix + 16)
    torch.testing.assert_close(features["attention"].sum(2), torch.ones(VIEWS, tower.readout.heads))
    assert features["activation"].shape[1] == 16
    assert ("prefix_activation" in features) == (tower.prefix > 0)
    assert tower.readout.scaled == ("gain" in features) == (not family.startswith(("siglip", "pe")))


WRONG = ("activation", "prefix_activation", "attention", "scale", "gain")


@pytest.mark.parametrize("family", ["siglip", "pe core", "eva02", "timm vit, registers", "coca"])
def test_the_sum_of_pairs_and_rest_finds_a_wrong_trace(family):
    tower = open_tower(family, block=0)
    features = tower.features(pixels())
    for name in WRONG:
        if name in features:
            wrong = features | {name: features[name].roll(1, 0)}  # of another view
            assert residual(tower.rebuild(wrong), features["embedding"]).max() > 1e-4, name


@contextlib.contextmanager
def frozen(monkeypatch, record):
    """Use σ of norms, and queries and keys of attention, as in the first pass, which fills `record`, in order of the calls."""
    norm, attend = F.layer_norm, F.scaled_dot_product_attention
    first = not record
    sigmas, scores = (record.setdefault(name, []) for name in ("sigma", "score"))
    position = {"sigma": 0, "score": 0}

    def take(name, values, make):
        if first:
            values.append(make())
        position[name] += 1
        return values[position[name] - 1]

    def layer_norm(x, shape, weight, bias, eps):
        sigma = take("sigma", sigmas, lambda: (x.var(-1, correction=0, keepdim=True) + eps).sqrt())
        return (x - x.mean(-1, keepdim=True)) / sigma * weight + bias

    def attention(query, key, value, *_, **__):
        return attend(*take("score", scores, lambda: (query, key)), value)

    with monkeypatch.context() as patch:
        patch.setattr(F, "layer_norm", layer_norm)
        patch.setattr(F, "scaled_dot_product_attention", attention)
        torch.backends.mha.set_fastpath_enabled(False)
        yield
        torch.backends.mha.set_fastpath_enabled(True)
    assert norm is F.layer_norm


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("neuron", [0, 17])
def test_a_neuron_removed_from_the_running_model_takes_its_pairs_away(family, neuron, monkeypatch):
    """Attention, norms and later MLPs are frozen. A neuron's own path at the class token is not in its pairs."""
    tower = open_tower(family)
    visual = copy.deepcopy(make_visual(family)).double()
    blocks = visual.transformer.resblocks if family in COCA else visual.trunk.blocks
    frozen_mlps = [block.mlp for block in blocks[tower.block + 1 :]]
    pool = None if family in COCA else visual.trunk.attn_pool
    frozen_mlps += [] if pool is None else [pool.mlp]
    outputs = {}
    for module in frozen_mlps:
        module.register_forward_hook(lambda module, _, output: outputs.setdefault(module, output))
    record = {}

    def embed():
        with frozen(monkeypatch, record):
            embedding = visual(pixels().double())
        return embedding[0] if family in COCA else embedding

    before = embed()
    torch.testing.assert_close(before.float(), tower.reference_embedding(pixels()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(embed(), before)
    mlp = blocks[tower.block].mlp
    weight = (mlp.c_proj if family in COCA else mlp.fc2).weight
    weight[:, neuron] = 0
    change = before - embed()
    features = tower.features(pixels())
    trace, readout = view_trace(features, None), tower.readout
    alone = torch.zeros_like(coefficients(trace, readout))
    alone[:, :, neuron] = coefficients(trace, readout)[:, :, neuron]
    pairs = torch.einsum("vhn,hdn,hed->ve", alone, readout.neuron_value, readout.output).double()
    if family not in POOLED:
        written = features["prefix_activation"][:, 0, neuron, None] * readout.write[neuron, :24]
        own = written @ tower.from_centred.T * features["gain"][:, None]
        assert residual(pairs, change).max() > 1e-2
        change = change - own
    assert residual(pairs, change).max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_views_of_another_size_have_the_positions_of_timm_or_open_clip(family):
    visual = make_visual(family)
    before = {name: value.clone() for name, value in visual.state_dict().items()}
    tower = open_tower(family, image_size=96)
    assert (tower.grid, tower.preprocessing.image_size) == (6, 96)
    features = tower.features(pixels(96), tokens=True)
    assert features["activation"].shape[:2] == (VIEWS, 36)
    assert features["token_embedding"].shape[:3] == (VIEWS, 3, 36)
    assert residual(tower.rebuild(features), tower.reference_embedding(pixels(96))).max() < 1e-5
    for name, value in visual.state_dict().items():
        assert torch.equal(value, before[name])
    if family in TIMM:
        resized = TimmModel(timm_name(family), EMBED, SIZE, **TIMM[family][2]).eval()
        resized.load_state_dict(before)
        resized.set_input_size((96, 96))
        torch.testing.assert_close(features["embedding"], resized(pixels(96)).detach(), rtol=1e-4, atol=2e-5)
    assert tower.visual is not visual
    assert find_family(family).token_size(visual) == 16
    with pytest.raises(NadpipeError, match=r"^segmentation\.crop: 90 pixels .* multiple of 16"):
        open_tower(family, image_size=90)


def test_a_stem_of_convolutions_may_embed_the_patches():
    """MobileCLIP-B has one."""
    stem = ConvStem(channels=(6, 12, 24), stride=(4, 2, 2), kernel_size=(4, 2, 2), padding=0)
    sizes = {"img_size": 64, "patch_size": 1, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": EMBED}
    visual = copy.deepcopy(make_visual("timm vit"))
    embed_layer = functools.partial(HybridEmbed, stem, proj=False)
    visual.trunk = VisionTransformer(**sizes, embed_layer=embed_layer, no_embed_class=True).eval().requires_grad_(False)
    stir(visual)
    assert timm_vit.FAMILY.recognises(visual)
    assert timm_vit.FAMILY.token_size(visual) == 16
    for size in (64, 96):
        preprocessing = Preprocessing(64, (0.0,) * 3, (1.0,) * 3, "bicubic")
        tower = timm_vit.FAMILY.open_tower(visual, preprocessing, "float32", size, None, None)
        features = tower.features(pixels(size))
        assert residual(tower.rebuild(features), tower.reference_embedding(pixels(size))).max() < 1e-5
    assert features["activation"].shape[1] == 36


@pytest.mark.parametrize("family", ["siglip", "pe core", "eva02", "coca"])
def test_bfloat16_is_close_and_its_pairs_and_rest_sum_to_its_own_embedding(family):
    exact, low = (open_tower(family, precision, block=1) for precision in ("float32", "bfloat16"))
    features = low.features(pixels())
    assert {values.dtype for values in features.values()} == {torch.float32}
    assert 1e-5 < residual(features["embedding"], exact.reference_embedding(pixels())).max() < 0.2
    assert residual(low.rebuild(features), features["embedding"]).max() < 1e-5


def test_blocks_that_no_head_reads_are_refused():
    for family, last in (("siglip", 2), ("coca", 2), ("eva02", 1)):
        for block in (last + 1, -1):
            with pytest.raises(NadpipeError, match=rf"^model\.block: no head reads .* choose one from 0 to {last}"):
                open_tower(family, block=block)
        with pytest.raises(NadpipeError, match=r"^segmentation\.block: .* set null"):
            open_tower(family, shown_block=1)


def tiny_config(family):
    """Return the model config of a family's tiny tower."""
    if family in COCA:
        options = {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 5, "output_tokens": True}
        vision = {"image_size": SIZE, "patch_size": 16, "layers": 3, "width": 24, "head_width": 8, **options}
        text = TINY["text_cfg"] | {"embed_cls": True, "output_tokens": True}
        decoder = {"context_length": 16, "width": 16, "heads": 2, "layers": 1, "attn_pooler_heads": 2}
        return TINY | {"vision_cfg": vision, "text_cfg": text, "multimodal_cfg": decoder, "custom_text": True}
    pool, proj = (TIMM[family][2][name] for name in ("pool", "proj"))
    vision = {"image_size": SIZE, "timm_model_name": timm_name(family), "timm_pool": pool, "timm_proj": proj}
    embed = 24 if proj == "none" else 12
    text = TINY["text_cfg"] | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    return TINY | {"embed_dim": embed, "vision_cfg": vision, "text_cfg": text, "custom_text": True, "init_logit_bias": -10}


def tiny_model(family):
    config = tiny_config(family)
    config.pop("custom_text")
    torch.manual_seed(2)
    build = open_clip.CoCa if family in COCA else open_clip.CustomTextCLIP
    clip = stir(build(**copy.deepcopy(config)).eval().requires_grad_(False))
    for name, values in clip.named_parameters():
        if name.startswith("text_decoder."):  # open_clip leaves a projection uninitialised
            torch.nn.init.zeros_(values)
    return clip


SOURCES = [
    *(("siglip", source) for source in ("safetensors", "pt", "bin", "hub")),
    *(("coca", source) for source in ("pt", "hub")),
    *(("pe core", source) for source in ("bin", "hub")),
    *(("eva02", source) for source in ("safetensors", "hub")),
]


@functools.cache
def tokenizer():
    return open_clip.SimpleTokenizer(context_length=16)


@pytest.mark.parametrize(("family", "source"), SOURCES)
def test_every_source_loads_images_and_texts_as_open_clip(tmp_path, monkeypatch, family, source):
    clip, config = tiny_model(family), tiny_config(family)
    path = tmp_path / f"open_clip_model.{'safetensors' if source == 'hub' else source}"
    state = {name: value.contiguous() for name, value in clip.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(
            {"state_dict": {f"module.{name}": value for name, value in state.items()}} if source == "bin" else state, path
        )
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash", "interpolation": "bicubic"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    if source == "hub":
        monkeypatch.setattr(sources, "hf_hub_download", lambda name, file: str(tmp_path / file))
        monkeypatch.setattr(sources, "download_pretrained_from_hf", lambda name: str(path))
        model = load_model("hf-hub:org/name", None, "cpu")
    else:
        model = load_model(str(tmp_path / "open_clip_config.json"), str(path), "cpu")
    assert (model.preprocessing.resize_mode, model.preprocessing.image_size) == ("squash", SIZE)
    tower = model.image_tower()
    expected = clip.encode_image(pixels(), normalize=False)
    assert residual(tower.embedding(pixels()), expected).max() < 1e-5
    assert torch.equal(tower.reference_embedding(pixels()), expected)
    texts = ["fish", "a photo of a very long list of things", ""]
    with torch.inference_mode():
        embedded = text_tower(model).embed_texts(texts, 2)
        encoded = clip.encode_text(tokenizer()(texts), normalize=False)
    torch.testing.assert_close(embedded, encoded, rtol=1e-4, atol=1e-5)


def test_a_class_token_may_have_a_text_decoder_beside_it(tmp_path):
    """coca_base has no attentional pooler."""
    config = tiny_config("coca")
    config["vision_cfg"] |= {"attentional_pool": False}
    torch.manual_seed(2)
    clip = stir(open_clip.CoCa(**copy.deepcopy({key: config[key] for key in config if key != "custom_text"})).eval())
    torch.nn.init.zeros_(clip.text_decoder.text_projection)
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, tmp_path / "w.safetensors")
    (tmp_path / "m.json").write_text(json.dumps(config))
    model = load_model(str(tmp_path / "m.json"), str(tmp_path / "w.safetensors"), "cpu")
    assert model.family is vit.FAMILY
    with torch.inference_mode():
        expected = clip.encode_image(pixels(), normalize=False)
        assert residual(model.image_tower().embedding(pixels()), expected).max() < 1e-5


def test_weights_of_another_architecture_are_refused(tmp_path):
    save_file(
        {name: value.contiguous() for name, value in tiny_model("siglip").state_dict().items()}, tmp_path / "w.safetensors"
    )
    (tmp_path / "m.json").write_text(json.dumps(tiny_config("pe core")))
    with pytest.raises(NadpipeError, match=r"does not fit .*m\.json: \d+ weights missing"):
        load_model(str(tmp_path / "m.json"), str(tmp_path / "w.safetensors"), "cpu")


REFUSED_NAMES = {
    "large_d": r"an MLP behind the pool \(timm_proj mlp\)",
    "convnext": "layers or a pool that nadpipe cannot read",
    "swin": "layers or a pool that nadpipe cannot read",
    "vitamin": "layers or a pool that nadpipe cannot read",
    "mobileclip-s": "timm_pool avg, which has no heads",
    "mobileclip2-s": "timm_pool avg, which has no heads",
    "eva02-e": "a norm behind the heads and the MLP",
    "vit_relpos": "layers or a pool that nadpipe cannot read",
    "vit_medium_patch16_gap": "timm_pool empty, which is neither token nor map",
    "clipa": "pool_type avg",
}
COUNT = 101  # of the 143 configs of open_clip 3.3.0


@functools.cache
def build_visual(vision, embed_dim):
    """Return a tower of open_clip without memory. vision: JSON; many configs share it."""
    with torch.device("meta"):
        return open_clip.model._build_vision_tower(embed_dim, json.loads(vision))


@pytest.mark.slow
def test_every_config_of_open_clip_is_recognised_or_refused_with_a_reason():
    accepted = {}
    configs = map(open_clip.get_model_config, open_clip.list_models())
    names = {config["vision_cfg"].get("timm_model_name", "") for config in configs}
    smallest = {name.rpartition("_")[0]: name for name in sorted(names, reverse=True)}
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        check_model_config(config, name)
        reason = next((words for part, words in REFUSED_NAMES.items() if part in name.lower()), None)
        if reason is not None:
            with pytest.raises(
                NadpipeError, match=rf"^{name}: image tower is .*{reason}.*; nadpipe needs [^\n]* such as ViT-B-32"
            ):
                load_model(name, None, "cpu")
            assert not any(family.accepts(config) for family in KNOWN)
            continue
        [family] = [family for family in KNOWN if family.accepts(config)]
        vision = config["vision_cfg"] | {"timm_model_pretrained": False}
        if "timm_model_name" in vision:  # towers of one name differ in the size of their images alone
            vision["timm_model_name"] = smallest[vision["timm_model_name"].rpartition("_")[0]]
            vision["image_size"] = int(vision["timm_model_name"].rpartition("_")[2])
        visual = build_visual(json.dumps(vision, sort_keys=True), config["embed_dim"])
        assert family.recognises(visual), name
        assert 14 <= family.token_size(visual) <= 32
        accepted[name] = family
    assert len(accepted) >= COUNT
    for name in ("PE-Core-B-16", "EVA02-L-14", "coca_ViT-L-14", "ViT-B-16-SigLIP2", "MobileCLIP-B"):
        assert name in accepted


UNREADABLE = {
    "parallel poolers": ({"attentional_pool": "parallel"}, "coca", "attentional_pool parallel"),
    "mean of queries": ({"pool_type": "avg"}, "coca", "pool_type avg"),
    "MLP behind the pool": ({"timm_proj": "mlp"}, "eva02", r"an MLP behind the pool \(timm_proj mlp\)"),
    "average": ({"timm_pool": "avg"}, "timm vit", "timm_pool avg"),
    "default pool": ({"timm_pool": ""}, "timm vit", "timm_pool empty"),
    "norms without means": (
        {"timm_model_name": "test_vit4", "image_size": 160, "timm_pool": "map"},
        "siglip",
        "norms without means",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_towers_that_nadpipe_cannot_read_are_refused_in_one_line(tmp_path, case):
    change, family, words = UNREADABLE[case]
    config = tiny_config(family)
    (tmp_path / "m.json").write_text(json.dumps(config | {"vision_cfg": config["vision_cfg"] | change}))
    with pytest.raises(NadpipeError, match=rf"m\.json: image tower (is|has) [^\n]*{words}[^\n]*; nadpipe needs [^\n]*$"):
        load_model(str(tmp_path / "m.json"), "no_such_tag", "cpu")


INVALID = {
    "too many tokens": ("siglip", {"vision_cfg": {"image_size": 4096}}, "vision_cfg.image_size: 4096 pixels are 65536 tokens"),
    "no token": ("siglip", {"vision_cfg": {"image_size": 15}}, "vision_cfg.image_size: 15 pixels are 0 tokens"),
    "not square": ("siglip", {"vision_cfg": {"image_size": [64, 96]}}, r"image_size \[64, 96\] is not square"),
    "unknown name": ("siglip", {"vision_cfg": {"timm_model_name": "vit_evil"}}, "layers or a pool that nadpipe cannot read"),
    "path": ("siglip", {"vision_cfg": {"timm_model_name": "local-dir:/x"}}, "vision_cfg.timm_model_name"),
    "no tokens for the decoder": ("coca", {"text_cfg": {"output_tokens": False}}, "multimodal_cfg: a text decoder needs"),
    "tokens without a decoder": ("siglip", {"text_cfg": {"output_tokens": True}}, "text_cfg.output_tokens: only a model with"),
    "heads of the pooler": ("coca", {"vision_cfg": {"attn_pooler_heads": 5}}, "attn_pooler_heads: 5 does not divide"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_configs_are_refused_in_one_line(tmp_path, case):
    family, change, words = INVALID[case]
    config = tiny_config(family)
    save_file({name: value.contiguous() for name, value in tiny_model(family).state_dict().items()}, tmp_path / "w.safetensors")
    changed = {section: config[section] | values for section, values in change.items()}
    (tmp_path / "m.json").write_text(json.dumps(config | changed))
    with pytest.raises(NadpipeError, match=rf"m\.json[^\n]*{words}[^\n]*$"):
        load_model(str(tmp_path / "m.json"), str(tmp_path / "w.safetensors"), "cpu")


def test_images_of_another_size_than_the_default_of_timm(tmp_path):
    clip = tiny_model("pe core")
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, tmp_path / "w.safetensors")
    config = tiny_config("pe core")
    (tmp_path / "m.json").write_text(json.dumps(config | {"vision_cfg": config["vision_cfg"] | {"image_size": 96}}))
    tower = load_model(str(tmp_path / "m.json"), str(tmp_path / "w.safetensors"), "cpu").image_tower()
    clip.visual.set_input_size((96, 96))
    assert tower.grid == 6
    assert residual(tower.embedding(pixels(96)), clip.encode_image(pixels(96), normalize=False)).max() < 1e-5


def test_unknown_names_list_supported_models_only():
    with pytest.raises(NadpipeError, match="PE-Core-B-16") as caught:
        sources.read_config("ViT-Z-99", lambda config: any(family.accepts(config) for family in models.FAMILIES))
    assert "convnext" not in str(caught.value)
