"""Vision transformers with a class token, against an independent float64 reference and against the running model."""

import copy
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from conftest import TINY_VIT
from safetensors.torch import save_file
from vit_reference import VIEWS, Reference, make_visual, open_tower, pixels

from nadpipe.circuit.attention import view_trace
from nadpipe.circuit.readout import coefficients, other_paths, residual, sum_pairs, token_weights, write_vectors
from nadpipe.errors import NadpipeError
from nadpipe.towers.model import load_model

VARIANTS = {
    "as published": {},
    "layer scale": {"ls_init_value": 0.3},
    "no first norm": {"no_ln_pre": True},
    "last norm after the pool": {"final_ln_after_pool": True},
    "fixed positions": {"pos_embed_type": "sin_cos_2d"},
    "patch dropout": {"patch_dropout": 0.5},
    "other norms": {"norm_layer": lambda width: open_clip.transformer.LayerNorm(width, eps=0.1)},
    "tokens too": {"output_tokens": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("block", [0, 2])
def test_pairs_and_paths_are_those_of_a_float64_reference(variant, block):
    visual = make_visual(**VARIANTS[variant])
    tower = open_tower(visual, block=block)
    features = tower.features(pixels())
    trace, readout = view_trace(features, None), tower.readout
    coefficient = coefficients(trace, readout)
    assert coefficient.shape == (VIEWS, 3 * (3 - block), 60)
    assert readout.layer.tolist() == [layer for layer in range(block + 1, 4) for _ in range(3)]
    write = torch.stack([write_vectors(readout, head) for head in range(readout.heads)])
    for view, image in enumerate(pixels()):
        reference = Reference(visual, image)
        own = (coefficient[view, :, :, None] * write).numpy()
        pairs = reference.pairs(block)
        np.testing.assert_allclose(own, pairs, atol=1e-5 * np.abs(pairs).max())
        np.testing.assert_allclose(features["embedding"][view], reference.embedding, rtol=1e-4, atol=1e-5)
        paths = reference.paths(block)
        assert tower.parts == tuple(paths)
        np.testing.assert_allclose(features["part"][view], np.array([*paths.values()]), rtol=1e-4, atol=2e-6)
    rest = other_paths(trace, readout)
    assert residual(sum_pairs(coefficient, readout) + rest, features["embedding"]).max() < 1e-5
    for term in (sum_pairs(coefficient, readout), rest):  # none is too small to matter
        assert (term.norm(dim=1) > 0.01 * features["embedding"].norm(dim=1)).all()


def test_the_embedding_is_that_of_encode_image(tiny_vit, tmp_path):
    save_file({name: value.contiguous() for name, value in tiny_vit.state_dict().items()}, tmp_path / "w.safetensors")
    (tmp_path / "m.json").write_text(json.dumps(TINY_VIT))
    model = load_model(str(tmp_path / "m.json"), str(tmp_path / "w.safetensors"), "cpu")
    for block in (None, 0, 1):
        tower = model.image_tower(block=block)
        features = tower.features(pixels())
        expected = tiny_vit.encode_image(pixels())
        assert residual(features["embedding"], expected).max() < 1e-5
        assert residual(tower.rebuild(features), expected).max() < 1e-5
        assert torch.equal(tower.reference_embedding(pixels()), expected)
    assert tower.block == 1
    assert model.image_tower().block == 2
    with pytest.raises(RuntimeError, match="without_reference"):
        tower.without_reference().reference_embedding(pixels())


class FrozenNorm(torch.nn.Module):
    """A LayerNorm with the σ of another input."""

    def __init__(self, norm, x):
        super().__init__()
        self.norm, self.sigma = norm, (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()

    def forward(self, x):
        return (x - x.mean(-1, keepdim=True)) / self.sigma * self.norm.weight + self.norm.bias


class FrozenAttention(torch.nn.Module):
    """Multi-head attention with the attention of another input."""

    def __init__(self, attention, normed):
        super().__init__()
        self.attention = attention
        self.shares = attention(normed, normed, normed, need_weights=True, average_attn_weights=False)[1]

    def forward(self, query, key, value, **_):
        weight, bias = self.attention.in_proj_weight.chunk(3)[2], self.attention.in_proj_bias.chunk(3)[2]
        values = (value @ weight.T + bias).unflatten(2, (self.attention.num_heads, -1)).transpose(1, 2)
        return self.attention.out_proj((self.shares @ values).transpose(1, 2).flatten(2)), None


class Constant(torch.nn.Module):
    """A module that returns the output for another input."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


@pytest.mark.parametrize("neuron", [0, 17, 59])
def test_a_neuron_removed_from_the_running_model_takes_its_pairs_away(neuron):
    """Attention, norms and MLP of the last block are frozen. The neuron's own path at the class token is not in its pairs."""
    visual = make_visual().double()
    caught = {}
    last = visual.transformer.resblocks[-1]
    hooked = {"ln_1": last.ln_1, "mlp": last.mlp, "ln_post": visual.ln_post}
    hooks = [
        module.register_forward_hook(lambda _, inputs, output, name=name: caught.update({name: (inputs[0], output)}))
        for name, module in hooked.items()
    ]
    before = visual(pixels().double())
    for hook in hooks:
        hook.remove()
    frozen = copy.deepcopy(visual)
    frozen_last = frozen.transformer.resblocks[-1]
    frozen_last.ln_1 = FrozenNorm(last.ln_1, caught["ln_1"][0])
    frozen_last.attn = FrozenAttention(last.attn, caught["ln_1"][1])
    frozen_last.mlp = Constant(caught["mlp"][1])
    frozen.ln_post = FrozenNorm(visual.ln_post, caught["ln_post"][0])
    torch.testing.assert_close(frozen(pixels().double()), before)
    write = frozen.transformer.resblocks[-2].mlp.c_proj.weight
    written = write[:, neuron].clone()
    write[:, neuron] = 0
    change = before - frozen(pixels().double())

    tower = open_tower(visual.float())
    features = tower.features(pixels())
    trace, readout = view_trace(features, None), tower.readout
    alone = coefficients(trace, readout)
    alone[:, :, [other for other in range(60) if other != neuron]] = 0
    pairs = sum_pairs(alone, readout).double()
    at_class_token = features["prefix_activation"][:, 0, neuron, None].double() * written
    centred = at_class_token - at_class_token.mean(1, keepdim=True)
    own = centred * features["gain"][:, None] * visual.ln_post.weight @ visual.proj.double()
    assert residual(pairs, change - own).max() < 1e-4
    assert residual(pairs, change).max() > 1e-2


WRONG = {
    "write": lambda readout: readout.write.roll(1, 0),
    "value": lambda readout: readout.value.roll(1, 0),
    "output": lambda readout: readout.output.roll(1, 0),
    "value_bias": lambda readout: torch.zeros_like(readout.value_bias),
    "output_bias": lambda readout: torch.zeros_like(readout.output_bias),
    "layer": lambda readout: readout.layer.flip(0),
}


@pytest.mark.parametrize("part", WRONG)
def test_the_sum_of_pairs_and_rest_finds_a_wrong_readout(part):
    tower = open_tower(make_visual(), block=0)
    readout = dataclasses.replace(tower.readout, **{part: WRONG[part](tower.readout)})
    wrong = dataclasses.replace(tower, weights=readout)
    features = wrong.features(pixels())
    assert residual(wrong.rebuild(features), features["embedding"]).max() > 1e-3


@pytest.mark.parametrize("name", ["activation", "prefix_activation", "attention", "scale", "gain"])
def test_the_sum_of_pairs_and_rest_finds_a_wrong_trace(name):
    tower = open_tower(make_visual(), block=0)
    features = tower.features(pixels())
    assert residual(tower.rebuild(features), features["embedding"]).max() < 1e-5
    wrong = features | {name: features[name].roll(1, 0)}  # of another view
    assert residual(tower.rebuild(wrong), features["embedding"]).max() > 1e-4


def test_rows_of_attention_sum_to_one_and_streams_are_normalised():
    tower = open_tower(make_visual(), block=1)
    features = tower.features(pixels())
    torch.testing.assert_close(features["attention"].sum(2), torch.ones(VIEWS, 6))
    torch.testing.assert_close(features["stream"].square().mean(3), torch.ones(VIEWS, 2, 17), rtol=1e-3, atol=0)
    torch.testing.assert_close(features["stream"].mean(3), torch.zeros(VIEWS, 2, 17), rtol=0, atol=1e-5)
    weights = token_weights(view_trace(features, None), tower.readout)
    expected = features["gain"][0] * features["attention"][0, 4, 9] * features["scale"][0, 1, 9]
    torch.testing.assert_close(weights[0, 4, 9], expected)


def test_bfloat16_is_close_and_its_pairs_and_rest_sum_to_its_own_embedding():
    exact, low = (open_tower(make_visual(), precision) for precision in ("float32", "bfloat16"))
    features = low.features(pixels())
    assert {values.dtype for values in features.values()} == {torch.float32}
    assert 1e-5 < residual(features["embedding"], exact.reference_embedding(pixels())).max() < 0.1
    assert residual(low.rebuild(features), features["embedding"]).max() < 1e-5


def test_views_of_another_size_have_interpolated_positions():
    visual = make_visual()
    tower = open_tower(visual, image_size=96)
    larger = open_clip.transformer.VisionTransformer(96, 16, 24, 4, 3, 2.5, output_dim=10)
    state = {"visual.positional_embedding": visual.positional_embedding.clone()}
    open_clip.model.resize_pos_embed(state, SimpleNamespace(visual=larger))
    torch.testing.assert_close(tower.visual.positional_embedding.data, state["visual.positional_embedding"])
    assert (tower.grid, tower.preprocessing.image_size) == (6, 96)
    features = tower.features(pixels(96))
    assert features["activation"].shape == (VIEWS, 36, 60)
    assert residual(tower.rebuild(features), tower.reference_embedding(pixels(96))).max() < 1e-5
    assert len(visual.positional_embedding) == 17
    with pytest.raises(NadpipeError, match=r"^segmentation\.crop: 90 pixels .* multiple of 16"):
        open_tower(visual, image_size=90)


def test_blocks_without_heads_behind_them_are_refused():
    visual = make_visual()
    for block in (3, -1, 9):
        with pytest.raises(NadpipeError, match=rf"^model\.block: no head reads .* block {block} of 4; choose one from 0 to 2"):
            open_tower(visual, block=block)
    with pytest.raises(NadpipeError, match=r"^segmentation\.block: .* set null"):
        open_tower(visual, shown_block=1)


REFUSED = {
    "average pool": ({"pool_type": "avg"}, "pool_type avg"),
    "norm behind attention": ({"scale_attn": True}, "scale_attn"),
    "scaled heads": ({"scale_heads": True, "qk_norm": True}, "scale_heads, qk_norm"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_transformers_are_refused_in_one_line(tmp_path, case):
    change, words = REFUSED[case]
    (tmp_path / "m.json").write_text(json.dumps(TINY_VIT | {"vision_cfg": TINY_VIT["vision_cfg"] | change}))
    with pytest.raises(NadpipeError, match=rf"image tower is a vision transformer with {words}; nadpipe needs .* class token"):
        load_model(str(tmp_path / "m.json"), "no_such_tag", "cpu")


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu", "ViT-L-14-336", "ViT-H-14", "ViT-bigG-14"])
def test_published_transformers_are_accepted_by_name_and_ask_for_weights(name):
    with pytest.raises(NadpipeError, match=r"^model\.pretrained: no weights"):
        load_model(name, None, "cpu")
