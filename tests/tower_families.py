"""Tiny towers of every transformer family with random weights, and each computed again in float64 numpy, head by head.

The reference reads names of weights and shares no code with nadpipe. Rotary angles are timm's.
"""

import functools

import numpy as np
import open_clip
import torch
from conftest import stir
from open_clip.timm_model import TimmModel
from timm.models import register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from nadpipe.towers import coca, map_head, timm_vit
from nadpipe.towers.preprocessing import Preprocessing

SIZE, VIEWS, EMBED = 70, 3, 10  # pixels: 4 × 4 patches of 16, and a rest
_SIZES = {"img_size": SIZE, "patch_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 3, "mlp_ratio": 2.5}
_EVA02 = {"qkv_fused": False, "swiglu_mlp": True, "use_rot_pos_emb": True, "ref_feat_shape": (3, 3)}
_PE = {
    "attn_type": "rope",
    "use_rot_pos_emb": True,
    "ref_feat_shape": (3, 3),
    "rope_grid_offset": 1.0,
    "attn_pool_num_heads": 4,
}
_PE |= {"rope_grid_indexing": "xy", "use_pre_transformer_norm": True, "attn_pool_mlp_ratio": 2.0}


TIMM = {  # class and options of the trunk, options of open_clip's wrapper
    "siglip": (VisionTransformer, {"class_token": False}, {"pool": "map", "proj": "none"}),
    "siglip, unread prefix": (VisionTransformer, {"reg_tokens": 2}, {"pool": "map", "proj": ""}),
    "siglip, read registers": (
        VisionTransformer,
        {"class_token": False, "reg_tokens": 2, "pool_include_prefix": True, "init_values": 0.5, "patch_drop_rate": 0.5},
        {"pool": "map", "proj": ""},
    ),
    "pe core": (Eva, _PE, {"pool": "map", "proj": None}),
    "pe core, no class token": (Eva, _PE | {"class_token": False}, {"pool": "map", "proj": None}),
    "eva02": (Eva, _EVA02 | {"scale_mlp": True, "scale_attn_inner": True}, {"pool": "token", "proj": None}),
    "eva02, patch dropout": (
        Eva,
        _EVA02 | {"patch_drop_rate": 0.5, "init_values": 0.5, "scale_attn_inner": True},
        {"pool": "token", "proj": None},
    ),
    "eva01": (Eva, {}, {"pool": "token", "proj": None}),
    "timm vit": (VisionTransformer, {"pre_norm": True, "init_values": 0.5}, {"pool": "token", "proj": None}),
    "timm vit, registers": (
        VisionTransformer,
        {"reg_tokens": 3, "no_embed_class": True, "qk_norm": True, "patch_drop_rate": 0.5},
        {"pool": "token", "proj": "linear", "proj_bias": True},
    ),
}
COCA = {
    "coca": {"output_dim": EMBED, "attn_pooler_heads": 5},
    "coca, one width": {"output_dim": 24, "attn_pooler_heads": 4, "ls_init_value": 0.5, "patch_dropout": 0.5},
}
FAMILIES = (*TIMM, *COCA)
POOLED = tuple(name for name in FAMILIES if name.startswith(("siglip", "pe", "coca")))


def timm_name(family):
    return "tiny_" + "".join(letter if letter.isalnum() else "_" for letter in family)


def _register(family, trunk, options):
    def make(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **given):
        made = trunk(**(_SIZES | options | given))
        made.default_cfg = {}  # open_clip reads it
        return made

    make.__name__, make.__module__ = timm_name(family), trunk.__module__
    register_model(make)


for _family, (_trunk, _options, _) in TIMM.items():
    _register(_family, _trunk, _options)


@functools.cache
def make_visual(family):
    """Return open_clip's tower of a family. Tests must not change it."""
    torch.manual_seed(0)
    if family in COCA:
        sizes = {"image_size": SIZE, "patch_size": 16, "width": 24, "layers": 3, "heads": 3, "mlp_ratio": 2.5}
        options = {"attentional_pool": True, "attn_pooler_queries": 4, "output_tokens": True} | COCA[family]
        visual = open_clip.transformer.VisionTransformer(**sizes, **options)
    else:
        visual = TimmModel(timm_name(family), EMBED, SIZE, **TIMM[family][2])
    stir(visual.eval().requires_grad_(False))
    for name, values in visual.named_parameters():  # large enough that each part matters, whatever the initial values
        if values.ndim > 1 and "patch_embed" not in name and "conv1" not in name:
            values.data = torch.randn(values.shape) * (0.5 if "token" in name or "embed" in name else values.shape[-1] ** -0.5)
    return visual


def find_family(family):
    return {"c": coca, "s": map_head, "p": map_head}.get(family[0], timm_vit).FAMILY


def open_tower(family, precision="float32", image_size=None, block=None, shown_block=None):
    preprocessing = Preprocessing(SIZE, (0.0,) * 3, (1.0,) * 3, "bicubic")
    return find_family(family).open_tower(make_visual(family), preprocessing, precision, image_size, block, shown_block)


def pixels(size=SIZE, views=VIEWS):
    return torch.randn(views, 3, size, size, generator=torch.Generator().manual_seed(1))


def gelu(x):
    return x * 0.5 * (1 + torch.erf(torch.from_numpy(x) / 2**0.5).numpy())


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    share = np.exp(x - x.max(-1, keepdims=True))
    return share / share.sum(-1, keepdims=True)


class Reference:
    """A tower in float64 numpy."""

    def __init__(self, family, image):
        visual = make_visual(family)
        self.family, self.pooled = family, family in POOLED
        self.state = {name: value.double().numpy() for name, value in visual.state_dict().items()}
        self.coca = family in COCA
        self.eps = 1e-5 if self.coca else visual.trunk.norm.eps
        self.blocks, self.heads = 3, 3
        self.prefix = 1 if self.coca else visual.trunk.num_prefix_tokens
        reads_prefix = self.coca or isinstance(visual.trunk, Eva) or visual.trunk.pool_include_prefix
        self.first = 0 if reads_prefix or not self.pooled else self.prefix  # first token among the keys
        rope = None if self.coca else getattr(visual.trunk, "rope", None)
        self.angles = None if rope is None else rope.get_embed().double().numpy()
        self.streams, self.rows, self.z, self.added, self.sigma = [self.embed(image)], [], [], [], []
        for block in range(self.blocks):
            x = self.streams[-1]
            attended = self.attend(block, x)
            x = x + attended
            hidden = self.neurons(block, x)
            weight, bias = self.second(block)
            written = (hidden @ weight.T + bias) * self.factor(block, 2)
            self.z.append(hidden)
            self.added.append((attended, written))
            self.streams.append(x + written)
        self.finish()

    def get(self, name, default=None):
        return self.state.get(name, default)

    def embed(self, image):
        patches = image.double().unfold(1, 16, 16).unfold(2, 16, 16).permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(1).numpy()
        name = "conv1" if self.coca else "trunk.patch_embed.proj"
        kernel = self.get(f"{name}.weight")
        x = patches @ kernel.reshape(len(kernel), -1).T + self.get(f"{name}.bias", 0)
        if self.coca:
            x = np.vstack([self.get("class_embedding"), x]) + self.get("positional_embedding")
            return self.norm("ln_pre", x)
        positions = self.get("trunk.pos_embed")[0]
        tokens = [self.get(f"trunk.{name}") for name in ("cls_token", "reg_token")]
        tokens = [token[0] for token in tokens if token is not None]
        if len(positions) == len(x):
            x = np.vstack([*tokens, x + positions])
        else:
            x = np.vstack([*tokens, x]) + positions
        return self.norm("trunk.norm_pre", x) if "trunk.norm_pre.weight" in self.state else x

    def norm(self, name, x, sigma=None, eps=None):
        sigma = np.sqrt(x.var(-1, keepdims=True) + (eps or self.eps)) if sigma is None else sigma
        return (x - x.mean(-1, keepdims=True)) / sigma * self.get(f"{name}.weight") + self.get(f"{name}.bias")

    def name(self, block, layer):
        if self.coca:
            known = {"norm1": "ln_1", "norm2": "ln_2", "proj": "attn.out_proj", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj"}
            return f"transformer.resblocks.{block}.{known[layer]}"
        known = {"proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
        return f"trunk.blocks.{block}.{known.get(layer, layer)}"

    def linear(self, block, layer):
        name = self.name(block, layer)
        return self.get(f"{name}.weight"), self.get(f"{name}.bias")

    def second(self, block):
        return self.linear(block, "fc2")

    def factor(self, block, number):
        if self.coca:
            return self.get(f"transformer.resblocks.{block}.ls_{number}.gamma", 1.0)
        return self.get(self.name(block, f"ls{number}.gamma"), self.get(self.name(block, f"gamma_{number}"), 1.0))

    def head(self, block, head):
        """Return weight and bias of queries, keys and values of a head."""
        width = 24 // self.heads
        rows = slice(head * width, (head + 1) * width)
        if self.coca:
            joined = [self.get(f"transformer.resblocks.{block}.attn.in_proj_{kind}") for kind in ("weight", "bias")]
        elif self.name(block, "attn.qkv.weight") in self.state:
            weight, bias = (self.get(self.name(block, f"attn.qkv.{kind}")) for kind in ("weight", "bias"))
            if bias is None:
                q_bias, v_bias = (self.get(self.name(block, f"attn.{kind}_bias")) for kind in "qv")
                bias = np.concatenate([q_bias, np.zeros(24), v_bias])
            joined = [weight, bias]
        else:
            layers = [self.linear(block, f"attn.{kind}_proj") for kind in "qkv"]
            return [(weight[rows], 0 if bias is None else bias[rows]) for weight, bias in layers]
        return [(w[rows], b[rows]) for w, b in zip(np.split(joined[0], 3), np.split(joined[1], 3), strict=True)]

    def rotate(self, vectors):
        if self.angles is None:
            return vectors
        sine, cosine = np.split(self.angles, 2, axis=1)
        spatial = vectors[self.prefix :]
        turned = np.empty_like(spatial)
        turned[:, ::2], turned[:, 1::2] = -spatial[:, 1::2], spatial[:, ::2]
        return np.vstack([vectors[: self.prefix], spatial * cosine + turned * sine])

    def queries_keys_values(self, block, head, normed):
        (q, q_bias), (k, k_bias), (v, v_bias) = self.head(block, head)
        query, key = normed @ q.T + q_bias, normed @ k.T + k_bias
        if f"trunk.blocks.{block}.attn.q_norm.weight" in self.state:
            query, key = (self.norm(self.name(block, f"attn.{n}_norm"), x) for n, x in (("q", query), ("k", key)))
        return self.rotate(query), self.rotate(key), normed @ v.T + v_bias

    def output(self, block, joined, sigma=None):
        """Apply the inner norm, if there is one, and the output projection to the heads' values side by side."""
        if self.has_inner(block):
            inner = self.name(block, "attn.norm")
            joined = self.norm(inner, joined, sigma)
        weight, bias = self.linear(block, "proj")
        return (joined @ weight.T + bias) * self.factor(block, 1)

    def attend(self, block, x):
        normed, rows, mixed = self.norm(self.name(block, "norm1"), x), [], []
        for head in range(self.heads):
            query, key, value = self.queries_keys_values(block, head, normed)
            rows.append(softmax(query @ key.T / np.sqrt(query.shape[1])))
            mixed.append(rows[-1] @ value)
        joined = np.hstack(mixed)
        self.rows.append(rows)
        self.sigma.append(np.sqrt(joined.var(1, keepdims=True) + self.eps))
        return self.output(block, joined)

    def neurons(self, block, x):
        normed = self.norm(self.name(block, "norm2"), x)
        if f"trunk.blocks.{block}.mlp.fc1_g.weight" in self.state:
            gate, linear = (normed @ w.T + b for w, b in (self.linear(block, "mlp.fc1_g"), self.linear(block, "mlp.fc1_x")))
            hidden = silu(gate) * linear
        else:
            weight, bias = self.linear(block, "fc1")
            hidden = normed @ weight.T + bias
            if self.second(block)[0].shape[1] < hidden.shape[1]:
                gate, linear = np.split(hidden, 2, axis=1)
                hidden = silu(gate) * linear
            else:
                hidden = gelu(hidden)
        norm = f"trunk.blocks.{block}.mlp.norm"
        return self.norm(norm, hidden) if f"{norm}.weight" in self.state else hidden

    # ------------------------------------------------------------------------------------------------------------ behind

    def last_linear(self):
        weight, bias = np.eye(24), np.zeros(24)
        for name in ("trunk.head", "head.proj"):
            if f"{name}.weight" in self.state:
                layer = self.get(f"{name}.weight")
                weight, bias = layer @ weight, layer @ bias + self.get(f"{name}.bias", 0)
        return weight, bias

    def pool_weights(self):
        """Return the norm's name, the query, and weight and bias of keys, values and output of the pool."""
        if not self.coca:
            pool = "trunk.attn_pool"
            q, q_bias = self.get(f"{pool}.q.weight"), self.get(f"{pool}.q.bias")
            query = q @ self.get(f"{pool}.latent")[0, 0] + q_bias
            kv = zip(np.split(self.get(f"{pool}.kv.weight"), 2), np.split(self.get(f"{pool}.kv.bias"), 2), strict=True)
            return "trunk.norm", query, *kv, (self.get(f"{pool}.proj.weight"), self.get(f"{pool}.proj.bias"))
        joined = self.get("attn_pool.attn.in_proj_weight")
        kinds = [self.get(f"attn_pool.attn.{kind}_proj_weight") for kind in "qkv"] if joined is None else np.split(joined, 3)
        biases = np.split(self.get("attn_pool.attn.in_proj_bias"), 3)
        query = kinds[0] @ self.norm("attn_pool.ln_q", self.get("attn_pool.query")[0]) + biases[0]
        output = [self.get(f"attn_pool.attn.out_proj.{kind}") for kind in ("weight", "bias")]
        return "attn_pool.ln_k", query, (kinds[1], biases[1]), (kinds[2], biases[2]), output

    @property
    def pool_heads(self):
        if self.coca:
            return COCA[self.family]["attn_pooler_heads"]
        return 4 if self.family.startswith("pe") else 3

    def finish(self):
        x = self.streams[-1]
        if not self.pooled:
            self.gain = 1 / np.sqrt(x[0].var() + self.eps)
            weight, bias = self.last_linear()
            self.embedding = weight @ self.norm("trunk.norm", x[0]) + bias
            return
        norm, query, (k, _), (v, v_bias), (o, o_bias) = self.pool_weights()
        normed = self.norm(norm, x)[self.first :]
        width = len(query) // self.pool_heads
        self.slots = [slice(head * width, (head + 1) * width) for head in range(self.pool_heads)]
        self.pool_rows = [softmax(query[s] @ (normed @ k[s].T).T / np.sqrt(width)) for s in self.slots]
        joined = np.hstack([row @ (normed @ v[s].T + v_bias[s]) for row, s in zip(self.pool_rows, self.slots, strict=True)])
        self.held = o @ joined + o_bias
        self.gain = 1 / np.sqrt(self.held.var() + self.eps)
        self.embedding = self.behind(self.held)

    def behind(self, pooled):
        """Return the embedding of what the pool's heads wrote."""
        if self.coca:
            return self.norm("ln_post", pooled) @ self.get("proj")
        weight, bias = self.last_linear()
        return (pooled + self.pool_mlp(pooled)) @ weight.T + bias

    def pool_mlp(self, pooled):
        pool = "trunk.attn_pool"
        hidden = self.norm(f"{pool}.norm", pooled) @ self.get(f"{pool}.mlp.fc1.weight").T + self.get(f"{pool}.mlp.fc1.bias")
        return gelu(hidden) @ self.get(f"{pool}.mlp.fc2.weight").T + self.get(f"{pool}.mlp.fc2.bias")

    # ------------------------------------------------------------------------------------------------------------- paths

    def read_out(self, vector):
        """Return what a vector in front of the last norm or projection adds to the embedding, with σ of this image."""
        if self.coca:
            return (vector - vector.mean()) * self.gain * self.get("ln_post.weight") @ self.get("proj")
        weight, _ = self.last_linear()
        if self.pooled:
            return weight @ vector
        return weight @ ((vector - vector.mean()) * self.gain * self.get("trunk.norm.weight"))

    def standard(self, norm, whole, part):
        """Normalise a part of the stream with σ of the whole, without β."""
        sigma = np.sqrt(whole.var(1, keepdims=True) + self.eps)
        return (part - part.mean(1, keepdims=True)) / sigma * self.get(f"{norm}.weight")

    def through(self, late, head, part, bias=False):
        """Return what a head writes into the embedding from a part of the stream; bias: with the bias of its values."""
        if late == self.blocks:
            norm, _, _, (v, _), (o, _) = self.pool_weights()
            slot = self.slots[head]
            read = self.pool_rows[head] @ self.standard(norm, self.streams[-1], part)[self.first :]
            return self.read_out(o[:, slot] @ (v[slot] @ read))
        norm = self.name(late, "norm1")
        *_, (v, v_bias) = self.head(late, head)
        value = v @ (self.rows[late][head][0] @ self.standard(norm, self.streams[late], part))
        if bias:
            value = value + v @ self.get(f"{norm}.bias") + v_bias
        joined = np.zeros(24)
        joined[head * 8 : head * 8 + 8] = value
        if self.has_inner(late):
            inner = self.name(late, "attn.norm")
            joined = (joined - joined.mean()) / self.sigma[late][0] * self.get(f"{inner}.weight")
        return self.read_out(self.linear(late, "proj")[0] @ joined * self.factor(late, 1))

    def has_inner(self, block):
        return f"trunk.blocks.{block}.attn.norm.weight" in self.state

    def late_heads(self, block):
        if self.pooled:
            return [(self.blocks, head) for head in range(self.pool_heads)]
        return [(late, head) for late in range(block + 1, self.blocks) for head in range(self.heads)]

    def write(self, block):
        return self.second(block)[0].T * self.factor(block, 2)

    def pairs(self, block):
        """Return the contribution of every pair (head, neuron, embed)."""
        write, z = self.write(block), self.z[block]
        return np.array(
            [
                [self.through(late, head, np.outer(z[:, neuron], write[neuron])) for neuron in range(z.shape[1])]
                for late, head in self.late_heads(block)
            ]
        )

    def paths(self, block):
        """Return the rest by path: name and layer, and what each adds to the embedding."""
        written = self.z[block] @ self.write(block)
        if self.pooled:
            others = [self.through(late, head, self.streams[-1] - written) for late, head in self.late_heads(block)]
            paths = {("heads", self.blocks): np.sum(others, 0)}
            weight, bias = (None, None) if self.coca else self.last_linear()
            if self.coca:
                paths["shift", None] = self.get("ln_post.bias") @ self.get("proj")
            else:
                paths["mlp", self.blocks] = weight @ self.pool_mlp(self.held)
            if not self.coca and "trunk.head.bias" in self.state:
                paths["shift", None] = bias
            return paths
        paths = {("input", None): self.read_out(self.streams[0][0])}
        for layer, (attended, added) in enumerate(self.added):
            inner = self.has_inner(layer)
            heads = [self.through(layer, head, self.streams[layer] - written, bias=inner) for head in range(self.heads)]
            paths["heads", layer] = self.read_out(attended[0]) if layer <= block else np.sum(heads, 0)
            paths["mlp", layer] = self.read_out(added[0])
        weight, bias = self.last_linear()
        paths["shift", None] = weight @ self.get("trunk.norm.bias") + bias
        return paths

    def recipe(self, name):
        """Return the embedding of each spatial token by a recipe of the literature."""
        last, stream = self.blocks - 1, self.streams[-2]
        normed = self.norm(self.name(last, "norm1"), stream)
        mixed = []
        for head in range(self.heads):
            query, key, value = self.queries_keys_values(last, head, normed)
            by_query, by_key = (softmax(part @ part.T / np.sqrt(part.shape[1])) for part in (query, key))
            mixed.append({"maskclip": value, "sclip": (by_query + by_key) @ value, "clearclip": by_query @ value}[name])
        changed = self.output(last, np.hstack(mixed))
        if name == "sclip":
            full = stream + changed
            weight, bias = self.second(last)
            changed = full + (self.neurons(last, full) @ weight.T + bias) * self.factor(last, 2)
        if self.pooled:
            norm, _, _, (v, v_bias), (o, o_bias) = self.pool_weights()
            tokens = self.norm(norm, self.streams[-1] if name == "maskclip" else changed)
            return self.behind((tokens @ v.T + v_bias) @ o.T + o_bias)[self.prefix :]
        weight, bias = self.last_linear()
        return (self.norm("trunk.norm", changed) @ weight.T + bias)[self.prefix :]
