"""A vision transformer with random weights, and the same computed in float64 numpy, one head and one token at a time."""

import numpy as np
import open_clip
import torch
from conftest import stir

from nadpipe.towers.preprocessing import Preprocessing
from nadpipe.towers.vit import FAMILY

SIZE, VIEWS = 70, 3  # pixels: 4 × 4 patches of 16, and a rest


def make_visual(**options):
    sizes = {"image_size": SIZE, "patch_size": 16, "width": 24, "layers": 4, "heads": 3, "mlp_ratio": 2.5, "output_dim": 10}
    torch.manual_seed(0)
    visual = open_clip.transformer.VisionTransformer(**sizes, act_layer=open_clip.transformer.QuickGELU, **options)
    return stir(visual.eval().requires_grad_(False))


def open_tower(visual, precision="float32", image_size=None, block=None, shown_block=None):
    preprocessing = Preprocessing(SIZE, (0.0,) * 3, (1.0,) * 3, "bicubic")
    return FAMILY.open_tower(visual, preprocessing, precision, image_size, block, shown_block)


def pixels(size=SIZE, views=VIEWS):
    return torch.randn(views, 3, size, size, generator=torch.Generator().manual_seed(1))


class Reference:
    """The tower in float64 numpy, one head and one token at a time. It shares only the weights with the package."""

    def __init__(self, visual, image):
        self.state = {name: value.double().numpy() for name, value in visual.state_dict().items()}
        self.eps = visual.ln_post.eps
        self.heads = visual.transformer.resblocks[0].attn.num_heads
        self.blocks = len(visual.transformer.resblocks)
        patches = image.double().unfold(1, 16, 16).unfold(2, 16, 16).permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(1).numpy()
        kernel = self.state["conv1.weight"].reshape(len(self.state["class_embedding"]), -1)
        x = np.vstack([self.state["class_embedding"], patches @ kernel.T]) + self.state["positional_embedding"]
        if "ln_pre.weight" in self.state:
            x = self.norm("ln_pre", x)
        self.streams, self.attention, self.activation, self.added = [x], [], [], []
        for block in range(self.blocks):
            attended = self.attend(block, x, self.normed(block, x)) * self.factor(block, "ls_1")
            x = x + attended
            hidden = self.norm(f"{self.name(block)}.ln_2", x) @ self.weight(block, "mlp.c_fc").T + self.bias(block, "mlp.c_fc")
            hidden = hidden / (1 + np.exp(-1.702 * hidden))
            written = hidden @ self.weight(block, "mlp.c_proj").T + self.bias(block, "mlp.c_proj")
            written = written * self.factor(block, "ls_2")
            self.activation.append(hidden)
            self.added.append((attended, written))
            x = x + written
            self.streams.append(x)
        self.gain = 1 / np.sqrt(x[0].var() + self.eps)
        self.embedding = self.norm("ln_post", x[0]) @ self.state["proj"]

    def name(self, block):
        return f"transformer.resblocks.{block}"

    def weight(self, block, name):
        return self.state[f"{self.name(block)}.{name}.weight"]

    def bias(self, block, name):
        return self.state[f"{self.name(block)}.{name}.bias"]

    def factor(self, block, name):
        return self.state.get(f"{self.name(block)}.{name}.gamma", 1.0)

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdims=True)
        sigma = np.sqrt(x.var(-1, keepdims=True) + self.eps)
        return centred / sigma * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def normed(self, block, x):
        return self.norm(f"{self.name(block)}.ln_1", x)

    def head(self, block, head):
        """Return query, key and value weights and biases of a head, and its columns of the output projection."""
        width = len(self.state["class_embedding"]) // self.heads
        weight, bias = (self.state[f"{self.name(block)}.attn.in_proj_{kind}"] for kind in ("weight", "bias"))
        rows = slice(head * width, (head + 1) * width)
        parts = [(part[rows], of_bias[rows]) for part, of_bias in zip(np.split(weight, 3), np.split(bias, 3), strict=True)]
        return [*parts, self.weight(block, "attn.out_proj")[:, rows]]

    def attend(self, block, x, normed):
        written, rows = self.bias(block, "attn.out_proj") + np.zeros_like(x), []
        for head in range(self.heads):
            (q, q_bias), (k, k_bias), (v, v_bias), output = self.head(block, head)
            score = (normed @ q.T + q_bias) @ (normed @ k.T + k_bias).T / np.sqrt(len(q))
            share = np.exp(score - score.max(1, keepdims=True))
            share /= share.sum(1, keepdims=True)
            rows.append(share)
            written = written + share @ (normed @ v.T + v_bias) @ output.T
        self.attention.append(rows)
        return written

    def read_out(self, vector):
        """Return what a vector in the class token's stream adds to the embedding, with the last norm's σ of this image."""
        return (vector - vector.mean()) * self.gain * self.state["ln_post.weight"] @ self.state["proj"]

    def through(self, late, head, stream):
        """Return what a head writes into the embedding from a part of the stream, without biases."""
        sigma = np.sqrt(self.streams[late].var(1, keepdims=True) + self.eps)
        normed = (stream - stream.mean(1, keepdims=True)) / sigma * self.state[f"{self.name(late)}.ln_1.weight"]
        *_, (v, _), output = self.head(late, head)
        read = self.attention[late][head][0] @ normed
        return self.read_out(output @ (v @ read) * self.factor(late, "ls_1"))

    def pairs(self, block):
        """Return the contribution of every pair (head, neuron, embed)."""
        write = self.weight(block, "mlp.c_proj").T * self.factor(block, "ls_2")
        z = self.activation[block]
        return np.array(
            [
                [self.through(late, head, np.outer(z[:, neuron], write[neuron])) for neuron in range(z.shape[1])]
                for late in range(block + 1, self.blocks)
                for head in range(self.heads)
            ]
        )

    def token_values(self, late):
        """Return what each head writes into the class token's stream from each token at attention 1 (head, token, stream)."""
        normed = self.normed(late, self.streams[late])
        parts = [self.head(late, head) for head in range(self.heads)]
        return np.array([(normed @ v.T + v_bias) @ output.T for *_, (v, v_bias), output in parts]) * self.factor(late, "ls_1")

    def embed(self, stream):
        """Apply the last norm and the projection to tokens."""
        return self.norm("ln_post", stream) @ self.state["proj"]

    def paths(self, block):
        """Return the rest by path: name and layer, and what each adds to the embedding."""
        paths = {("input", None): self.read_out(self.streams[0][0])}
        written = self.activation[block] @ (self.weight(block, "mlp.c_proj").T * self.factor(block, "ls_2"))
        for layer, (attended, added) in enumerate(self.added):
            heads = [self.through(layer, head, self.streams[layer] - written) for head in range(self.heads)]
            paths["heads", layer] = self.read_out(attended[0]) if layer <= block else np.sum(heads, 0)
            paths["mlp", layer] = self.read_out(added[0])
        paths["shift", None] = self.state["ln_post.bias"] @ self.state["proj"]
        return paths
