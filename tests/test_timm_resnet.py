"""CLIP-ResNets of timm: each form of pool and projection against timm's own code and a float64 reference."""

import copy
import dataclasses
import json

import numpy as np
import open_clip
import pytest
import torch
import xarray as xr
from conftest import TINY
from open_clip.timm_model import TimmModel
from PIL import Image
from safetensors.torch import save_file
from stage_run import Run, noise
from timm.layers import apply_rot_embed_cat
from timm.models import byobnet

from nadpipe.circuit.attention import attention, token_queries_and_keys, tokens, trace
from nadpipe.circuit.methods import METHODS
from nadpipe.circuit.readout import coefficients, residual, sum_pairs, write_vectors
from nadpipe.circuit.registers import zero_neurons
from nadpipe.circuit.segmentation import LOGITS, Query, Tokens
from nadpipe.errors import NadpipeError
from nadpipe.store.dense import open_dense
from nadpipe.store.pool import read_pool
from nadpipe.towers import sources, timm_resnet
from nadpipe.towers.model import load_model

FORMS = {  # trunk, timm_pool, timm_proj, timm_proj_bias
    "own pool": ("resnet50_clip", "token", "", False),
    "own pool, then linear": ("resnet50_clip", "token", "linear", True),
    "own pool by default": ("resnet50_clip.openai", "", "linear", False),
    "learned positions": ("resnet50_clip_gap", "abs_attn", "", False),
    "rotary positions": ("resnet50_clip_gap", "rot_attn", "none", False),
    "rotary positions, then linear": ("resnet50_clip_gap", "rot_attn", "linear", True),
}
ROTARY = ("rotary positions", "rotary positions, then linear")


def config_of(form, **vision):
    trunk, pool, projection, bias = FORMS[form]
    chosen = {"timm_model_name": trunk, "timm_pool": pool, "timm_proj": projection, "timm_proj_bias": bias}
    return TINY | {"vision_cfg": {"image_size": 96, **chosen, **vision}}


@pytest.fixture(autouse=True)
def _small_trunks(monkeypatch):
    """Make timm's CLIP-ResNets small: 256 neurons, 4 heads and 2 blocks in the last stage."""
    channels, depths = (32, 64, 128, 256), (1, 1, 1, 2)
    for name in ("resnet50_clip", "resnet50_clip_gap"):
        config = byobnet.model_cfgs[name]
        blocks = [
            dataclasses.replace(block, c=width, d=depth)
            for block, width, depth in zip(config.blocks, channels, depths, strict=True)
        ]
        monkeypatch.setitem(byobnet.model_cfgs, name, dataclasses.replace(config, blocks=tuple(blocks), stem_chs=(4, 4, 8)))


def make_clip(config, seed=3):
    """Return a random model whose batch norms and biases are away from their initial values."""
    torch.manual_seed(seed)
    return stir(open_clip.CLIP(**copy.deepcopy(config)).eval().requires_grad_(False))


def stir(clip):
    """Set batch norms and biases of the image tower to random values, and make its attention far from uniform."""
    for module in clip.visual.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                values.uniform_(0.5, 1.5)
    for name, value in clip.visual.state_dict().items():
        if name.endswith(("bias", "running_mean", "pos_embed")):
            value.normal_(0, 0.3)
        elif name.endswith(("q.weight", "k.weight", "qkv.weight", "q_proj.weight", "k_proj.weight")):
            value.mul_(4)
    return clip


def load(folder, form, **vision):
    """Save a random model; return it, and the same model as nadpipe loads it."""
    config = config_of(form, **vision)
    clip = make_clip(config)
    (folder / "m.json").write_text(json.dumps(config))
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, folder / "w.safetensors")
    return clip, load_model(str(folder / "m.json"), str(folder / "w.safetensors"), "cpu")


def summed(z, pool):
    return sum_pairs(coefficients(trace(z, pool), pool.readout), pool.readout)


@pytest.mark.parametrize("form", FORMS)
def test_pairs_sum_to_encode_image_at_every_size(tmp_path, form):
    """timm interpolates the positions of 224 pixels, 7 × 7 tokens, to images of another size."""
    clip, model = load(tmp_path, form, image_size=224)
    for side in (96, 160, 224):
        pixels = torch.randn(2, 3, side, side)
        tower = model.image_tower(image_size=None if side == 224 else side)
        features = tower.features(pixels)
        expected = clip.encode_image(pixels)
        assert (tower.grid, tower.preprocessing.image_size, tower.block) == (side // 32, side, 1)
        assert features["activation"].shape == (2, (side // 32) ** 2, 256)
        assert float(features["activation"].min()) == 0
        for value in (summed(features["activation"], tower.pool), features["embedding"], tower.embedding(pixels)):
            assert residual(value, expected).max() < 1e-5
        torch.testing.assert_close(tower.reference_embedding(pixels), expected, rtol=0, atol=0)
    spread = trace(features["activation"], tower.pool).attention.amax(2) * tower.pool.tokens
    assert spread.mean() > 1.5  # attention matters
    with pytest.raises(NadpipeError, match=r"^segmentation\.crop: 90 pixels .* multiple of 32"):
        model.image_tower(image_size=90)


def reference_pairs(clip, pixels):
    """Compute the contribution of every pair in float64, from timm's weights and the definition of its pools.

    Returns (view, head, neuron, embed), and the constant of each view's embedding.
    """
    visual = copy.deepcopy(clip.visual).double()
    z = visual.trunk.forward_features(pixels.double())
    neurons, side = z.shape[1:3]
    pool = visual.head.pool if hasattr(visual.head, "pool") else visual.trunk.head
    x = z.flatten(2).transpose(1, 2).numpy()
    x = np.concatenate([x.mean(1, keepdims=True), x], axis=1)
    rotary = not isinstance(pool.pos_embed, torch.nn.Parameter)
    if not rotary:
        grid = pool.pos_embed[1:].unflatten(0, (7, 7)).permute(2, 0, 1)[None].float()
        grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)[0]
        x = x + np.concatenate([pool.pos_embed[:1].numpy(), grid.flatten(1).T.double().numpy()])
    joined = (pool.qkv,) if pool.qkv is not None else (pool.q, pool.k, pool.v)
    weight = np.concatenate([layer.weight.numpy() for layer in joined]).reshape(3, pool.num_heads, 64, neurons)
    bias = np.concatenate([layer.bias.numpy() for layer in joined]).reshape(3, pool.num_heads, 64)
    query, key = (np.einsum("vtn,hdn->vhtd", x, weight[part]) + bias[part][:, None] for part in (0, 1))
    if rotary:
        for token in range(side * side):
            for entry in range(0, 64, 2):
                place = (divmod(token, side)[0 if entry < 32 else 1]) * 7 / side
                angle = place * 10_000.0 ** -((entry // 2 % 16) / 16)
                turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
                key[:, :, token + 1, entry : entry + 2] = key[:, :, token + 1, entry : entry + 2] @ turn.T
    score = np.einsum("vhd,vhtd->vht", query[:, :, 0], key) / 8
    share = np.exp(score - score.max(2, keepdims=True))
    share /= share.sum(2, keepdims=True)
    behind, offset = np.eye(256), np.zeros(256)
    for layer in (pool.proj, *visual.head):
        if isinstance(layer, torch.nn.Linear):
            behind = layer.weight.numpy() @ behind
            offset = layer.weight.numpy() @ offset + (0 if layer.bias is None else layer.bias.numpy())
    behind = behind.reshape(-1, pool.num_heads, 64)
    pairs = np.einsum("vht,vtn,hdn,ehd->vhne", share, x, weight[2], behind, optimize=True)
    return pairs, np.einsum("ehd,hd->e", behind, bias[2]) + offset


@pytest.mark.parametrize("form", FORMS)
def test_every_pair_is_that_of_a_float64_reference(tmp_path, form):
    clip, model = load(tmp_path, form, image_size=160, timm_drop=0.5, timm_drop_path=0.2)  # both are for training
    pixels = torch.randn(2, 3, 160, 160)
    pairs, constant = reference_pairs(clip, pixels)
    exact = copy.deepcopy(clip.visual).double()(pixels.double()).numpy()
    np.testing.assert_allclose(pairs.sum((1, 2)) + constant, exact, rtol=1e-5, atol=1e-6)
    tower = model.image_tower()
    coefficient = coefficients(trace(tower.features(pixels)["activation"], tower.pool), tower.readout)
    for head in range(4):
        factored = coefficient[:, head, :, None] * write_vectors(tower.readout, head)
        np.testing.assert_allclose(factored, pairs[:, head], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(tower.readout.constant, constant, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["learned positions", *ROTARY])
def test_queries_and_keys_and_zeroed_neurons_follow_the_pool(tmp_path, form):
    """Activations are set to zero before the pool, and timm's own pool runs again."""
    _, model = load(tmp_path, form)
    tower = model.image_tower()
    pixels = torch.randn(1, 3, 96, 96)
    z = tower.features(pixels)["activation"]
    x = tokens(z, tower.pool)
    query, key = token_queries_and_keys(x, tower.pool)
    share = (torch.einsum("vhd,vhtd->vht", query[:, :, 0], key) / 8).softmax(2)
    torch.testing.assert_close(share, attention(x, tower.pool), rtol=1e-4, atol=1e-6)
    zeroed = zero_neurons(z[0], 4, tower.pool)
    for neuron in (0, 17, int(z[0].sum(0).argmax())):
        without = z.clone()
        without[..., neuron] = 0
        whole, changed = (tower.head(values.transpose(1, 2).unflatten(2, (3, 3))) for values in (z, without))
        expected = (changed - whole).norm() / whole.norm()
        torch.testing.assert_close(zeroed.embedding_change[neuron], expected, rtol=1e-3, atol=1e-6)
        drop = attention(x, tower.pool) - attention(tokens(without, tower.pool), tower.pool)
        torch.testing.assert_close(zeroed.attention_drop[neuron], drop[0, :, 5].mean(), rtol=1e-3, atol=1e-6)


def test_weights_load_from_safetensors_state_dicts_and_the_hub(tmp_path, monkeypatch):
    clip, model = load(tmp_path, "rotary positions")
    torch.save(clip.state_dict(), tmp_path / "w.pt")
    torch.save({"state_dict": {f"module.{name}": value for name, value in clip.state_dict().items()}}, tmp_path / "t.pt")
    stamps = [load_model(str(tmp_path / "m.json"), str(tmp_path / name), "cpu").stamp for name in ("w.pt", "t.pt")]
    assert stamps == [model.stamp] * 2
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config_of("rotary positions")}))
    monkeypatch.setattr(sources, "hf_hub_download", lambda name, file: str(tmp_path / file))
    monkeypatch.setattr(sources, "download_pretrained_from_hf", lambda name: str(tmp_path / "w.safetensors"))
    hub = load_model("hf-hub:org/name", None, "cpu")
    assert hub.weights_sha256 == model.weights_sha256
    pixels = torch.randn(1, 3, 96, 96)
    assert torch.equal(hub.image_tower().embedding(pixels), model.image_tower().embedding(pixels))


def test_an_earlier_block_and_bfloat16(tmp_path):
    _, model = load(tmp_path, "own pool")
    pixels = torch.randn(2, 3, 96, 96)
    early, last, low = model.image_tower(shown_block=0), model.image_tower(), model.image_tower("bfloat16")
    z = last.features(pixels)["activation"]
    maps = early.features(pixels)["activation"].transpose(1, 2).unflatten(2, (3, 3))
    torch.testing.assert_close(last.blocks[1](maps).flatten(2).transpose(1, 2), z)
    assert 1e-5 < residual(low.features(pixels)["embedding"], last.pool_embedding(z)).max() < 0.1
    with pytest.raises(RuntimeError, match="without_reference"):
        last.without_reference().reference_embedding(pixels)
    with pytest.raises(NadpipeError, match=r"^segmentation\.block: .* no block 2; choose one from 0 to 1"):
        model.image_tower(shown_block=2)
    with pytest.raises(NadpipeError, match=r"^model\.block: .* reads block 1; set null"):
        model.image_tower(block=0)


@pytest.mark.slow
def test_the_stages_run_and_every_method_segments(tmp_path):
    config = config_of("rotary positions, then linear")
    run = Run(tmp_path, make_clip(config), config)
    for number in range(3):
        Image.fromarray(np.eye(120, dtype=np.uint8) + number % 2).save(tmp_path / f"m{number}.png")
    run.write_images(noise(3, 120, 120), mask=[f"m{number}.png" for number in range(3)])
    contributions = run.decompose(views="sliding", scale=1.25)
    stores = [xr.open_zarr(path) for path in (*contributions, run.pool, tmp_path / "d-features-0.zarr")]
    assert float(stores[0]["residual"].max()) < 1e-5
    assert not stores[0]["rest"].any()
    assert stores[1]["frequency"].shape == (16,)
    assert float(stores[2].attrs["encode_image_error"]) < 1e-5
    dense = open_dense(contributions, run.pool)[...].sum((1, 2))
    np.testing.assert_allclose(dense, stores[0]["embedding"].values, rtol=1e-3, atol=1e-5)
    run.classes()
    run.select(contributions)
    confusion, _ = run.segment(contributions, k=(9,), methods=tuple(METHODS))
    scores = run.score(confusion)
    assert scores["method"].tolist() == list(METHODS)
    assert (scores["pixels"] == 3 * 120**2).all()
    table = run.tabulate("pair", contributions)
    assert len(table) == 4 * 256
    assert np.isfinite(table["coefficient_std"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["own pool", "learned positions", "rotary positions"])
def test_the_exported_readout_is_right_for_smaller_crops(tmp_path, form):
    """Positions are for 7 × 7 tokens in the weights, for 3 × 3 in the readout, and for 2 × 2 in the crops."""
    config = config_of(form)
    run = Run(tmp_path, make_clip(config), config)
    run.write_images(noise(1, 96, 130))
    [path] = run.decompose(views="sliding", crop=2 / 3)
    assert float(xr.open_zarr(path)["residual"].max()) < 1e-5
    assert float(xr.open_zarr(tmp_path / "d-features-0.zarr").attrs["encode_image_error"]) < 1e-5
    pool = read_pool(run.pool)[0]
    assert (pool.grid, pool.frequency is not None) == (3, form in ROTARY)


@pytest.mark.parametrize("form", ["learned positions", "rotary positions"])
def test_methods_read_the_tokens_as_documented(tmp_path, form):
    """The published recipes change the attention of timm's pool; timm's own layers compute the expected values."""
    clip, model = load(tmp_path, form)
    tower = model.image_tower()
    z = tower.features(torch.randn(2, 3, 96, 96))["activation"]
    pool = clip.visual.head.pool
    own = tokens(z, tower.pool)
    query, key, value = pool.qkv(own).unflatten(2, (3, 4, 64)).permute(2, 0, 3, 1, 4)
    plain = pool.qkv(torch.cat([z.mean(1, keepdim=True), z], dim=1)).unflatten(2, (3, 4, 64))[:, 1:, 2].flatten(2)
    if form == "rotary positions":
        turn = pool.pos_embed.get_embed((3, 3))
        query[:, :, 1:], key[:, :, 1:] = (apply_rot_embed_cat(vectors[:, :, 1:], turn) for vectors in (query, key))
    by_query, by_key = ((vectors @ vectors.transpose(2, 3))[:, :, 1:, 1:].div(8).softmax(3) for vectors in (query, key))

    def project(values):
        return torch.nn.functional.normalize(pool.proj(values), dim=2)

    def mixed(weight):
        return project((weight @ value[:, :, 1:]).transpose(1, 2).flatten(2))

    text = torch.nn.functional.normalize(torch.randn(3, 12), dim=1)
    found = Tokens(z, Query(tower.pool, text, torch.zeros(4, 10, 64), sink=None))
    expected = {"maskclip": project(plain), "sclip": mixed(by_query + by_key), "clearclip": mixed(by_query)}
    for method, embedding in expected.items():
        torch.testing.assert_close(LOGITS[method](found, None), (embedding @ text.T).mT, rtol=1e-4, atol=1e-5)


REFUSED = {  # trunk, timm_pool, timm_proj
    "average pool": ("resnet50_clip_gap", "avg", "linear"),
    "no pool": ("resnet50_clip", "", ""),
    "two pools": ("resnet50_clip", "abs_attn", ""),
    "average of a trunk with a pool": ("resnet50_clip", "avg", "linear"),
    "MLP behind the pool": ("resnet50_clip_gap", "rot_attn", "mlp"),
    "MLP behind the trunk's pool": ("resnet50_clip", "token", "mlp"),
    "no projection": ("resnet50_clip", "token", "none"),
    "another ResNet": ("resnet50", "rot_attn", ""),
    "map of a trunk without pool": ("resnet50_clip_gap", "token", ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_pools_and_projections_are_refused_before_weights_are_loaded(tmp_path, case):
    trunk, pool, projection = REFUSED[case]
    vision = {"image_size": 96, "timm_model_name": trunk, "timm_pool": pool, "timm_proj": projection}
    (tmp_path / "m.json").write_text(json.dumps(TINY | {"vision_cfg": vision}))
    with pytest.raises(NadpipeError, match=rf"image tower is {trunk} with .*; nadpipe needs .*a CLIP-ResNet of timm"):
        load_model(str(tmp_path / "m.json"), str(tmp_path / "no.pt"), "cpu")


def test_the_same_weights_give_the_same_pairs_as_open_clips_own_tower(tmp_path):
    """timm converts the names of open_clip's weights. A trunk of width 8 has the channels and heads of `_small_trunks`."""
    torch.manual_seed(5)
    config = TINY | {"vision_cfg": {"image_size": 224, "layers": [1, 1, 1, 2], "width": 8, "head_width": 64}}
    clip = stir(open_clip.CLIP(**copy.deepcopy(config)).eval().requires_grad_(False))
    (tmp_path / "rn.json").write_text(json.dumps(config))
    state = {name: value.contiguous() for name, value in clip.state_dict().items()}
    save_file(state, tmp_path / "rn.safetensors")
    (tmp_path / "timm.json").write_text(json.dumps(config_of("own pool", image_size=224)))
    trunk = open_clip.CLIP(**config_of("own pool", image_size=224)).visual.trunk
    converted = {f"visual.trunk.{name}": value for name, value in byobnet.checkpoint_filter_fn(state, trunk).items()}
    others = {name: value for name, value in state.items() if not name.startswith("visual.")}
    save_file(others | converted, tmp_path / "timm.safetensors")
    pixels, found = torch.randn(2, 3, 160, 160), []
    for name in ("rn", "timm"):
        model = load_model(str(tmp_path / f"{name}.json"), str(tmp_path / f"{name}.safetensors"), "cpu")
        tower = model.image_tower(image_size=160)
        found.append((coefficients(trace(tower.features(pixels)["activation"], tower.pool), tower.readout), tower.readout))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    for name in ("value", "value_bias", "output", "output_bias"):
        torch.testing.assert_close(*(getattr(readout, name) for _, readout in found), rtol=0, atol=0)


def test_an_image_size_that_is_no_whole_number_of_tokens_is_refused(tmp_path):
    _, model = load(tmp_path, "own pool", image_size=100)
    with pytest.raises(NadpipeError, match=r"^vision_cfg\.image_size: 100 pixels .* multiple of 32"):
        model.image_tower()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50_clip", "resnet101_clip", "resnet50x4_clip", "resnet50x16_clip", "resnet50x64_clip"])
def test_the_published_sizes_are_read(monkeypatch, name):
    """On the meta device, so without memory: only the shapes of timm's own configs are checked."""
    monkeypatch.undo()  # timm's own sizes
    family = timm_resnet.FAMILY
    width = {"50x4": 2560, "50x16": 3072, "50x64": 4096}.get(name.removeprefix("resnet").removesuffix("_clip"), 2048)
    for trunk, pool in ((name, "token"), (f"{name}_gap", "abs_attn"), (f"{name}_gap", "rot_attn")):
        with torch.device("meta"):
            visual = TimmModel(trunk, 640, pool=pool, proj="")
        assert family.recognises(visual)
        read = timm_resnet.read_pool(visual)
        assert (read.heads, read.neurons, read.embed, read.readout.width) == (width // 64, width, 640, 64)
