"""Schemas of features, contributions of pairs, and statistics of both."""

from nadpipe.store.schema import Array, StoreKind

VIEW_TABLE = {
    "image_id": Array(("view",), "int", "row of images.parquet", "manifest"),
    "crop_top": Array(("view",), "int", "pixels of the resized image", "view table"),
    "crop_left": Array(("view",), "int", "pixels of the resized image", "view table"),
    "crop_size": Array(("view",), "int", "pixels of the resized image", "view table"),
    "resized_height": Array(("view",), "int", "pixels", "view table"),
    "resized_width": Array(("view",), "int", "pixels", "view table"),
}
_RECORDED = {  # by towers whose attention does not follow from the activations
    "prefix_activation": Array(
        ("view", "prefix", "neuron"),
        "float",
        "activation",
        "z at the tokens that heads read before the spatial ones: class token, registers; missing without any",
    ),
    "attention": Array(
        ("view", "head", "key"),
        "float",
        "share, sums to 1 over keys",
        "a[h, t]; class token and registers, then the spatial tokens",
    ),
    "scale": Array(
        ("view", "layer", "key"),
        "float",
        "1 / stream",
        "1/σ of the norm before each layer's heads, times 1/σ of an inner norm behind them",
    ),
    "gain": Array(("view",), "float", "1 / stream", "1/σ of the norm after the heads; missing for 1"),
    "part": Array(
        ("view", "part", "embed"),
        "float",
        "embedding units",
        "the rest by path; attribute parts has the name and the layer of each",
    ),
    "stream": Array(
        ("view", "layer", "key", "stream"),
        "float",
        "unit variance",
        "what each layer's heads read, normalised; last 1/σ of an inner norm, if there is one",
    ),
    "token_embedding": Array(
        ("view", "recipe", "token", "embed"),
        "float",
        "embedding units",
        "embedding of each spatial token by recipes of the literature, which attribute recipes names; only of sliding views",
    ),
}
ACTIVATIONS = ("activation", "prefix_activation")
TRACED = ("activation", *(name for name in _RECORDED if name not in ("stream", "token_embedding")))  # what a trace consists of
FEATURES = StoreKind(
    "features",
    "results/artifacts/<dataset>/features/<shard>.zarr",
    {
        "activation": Array(("view", "token", "neuron"), "float", "activation", "z, before the positional embedding"),
        "embedding": Array(
            ("view", "embed"),
            "float",
            "embedding units, not normalised",
            "image tower; attribute encode_image_error is its distance from open_clip's encode_image",
        ),
        "rounding": Array(
            ("view",), "float", "relative", "‖embedding of the stored activation - embedding‖ / ‖embedding‖, 0 in float32"
        ),
        **_RECORDED,
        **VIEW_TABLE,
    },
    first={"token": 1},  # spatial tokens count from 1; in a CLIP-ResNet, token 0 has no activation of its own
    optional=tuple(_RECORDED),
    format=7,  # format 6 had query_activation, of one token
)
SAMPLED_VIEWS = StoreKind(
    "sampled views",
    "results/artifacts/discovery/samples/<shard>.zarr",
    {name: FEATURES.arrays[name] for name in ("activation", "attention", "image_id")},
    first=FEATURES.first,
    optional=("attention",),
)
CONTRIBUTIONS = StoreKind(
    "contributions",
    "results/artifacts/<dataset>/contributions/<shard>.zarr",
    {
        "coefficient": Array(
            ("view", "head", "neuron"),
            "float",
            "activation",
            "s[h, n] = gain · sum_t a[h, t] · scale[layer(h), t] · z_t[n]",
            longest={"head": 2, "view": 32},  # a compromise between reading one image and one pair; docs/benchmarks.md
        ),
        "attention": Array(("view", "head", "token"), "float", "share, sums to 1 over tokens", "a[h, t]"),
        "embedding": Array(("view", "embed"), "float", "embedding units, not normalised", "sum over all pairs, and rest"),
        "rest": Array(
            ("view", "embed"), "float", "embedding units", "part of the embedding that is not in pairs; 0 for CLIP-ResNet"
        ),
        "residual": Array(("view",), "float", "relative", "‖pairs + rest - embedding of the features‖ / ‖embedding‖"),
        "rounding": Array(
            ("view",), "float", "relative", "‖sum over stored pairs - sum over pairs‖ / ‖sum over pairs‖, 0 in float32"
        ),
        "image_id": VIEW_TABLE["image_id"],
    },
)
_HEAD_MEANS = {
    "attention_mean": Array(("head", "token"), "float", "share", "mean over views of a[h, t]"),
    "value_mean": Array(("head", "token", "width"), "float", "value", "mean over views of a[h, t] (W_V^h x_t + b_V^h)"),
}
SHARD_MEANS = StoreKind(
    "head means of a shard",
    "results/artifacts/<dataset>/head_means/<shard>.zarr",
    {
        **_HEAD_MEANS,
        "part_mean": Array(
            ("part", "embed"),
            "float",
            "embedding units",
            "mean over views of each part of y; attribute parts has names and layers",
        ),
        "part_product": Array(("part",), "float", "embedding units²", "mean over views of ⟨part, y⟩"),
    },
)
HEAD_MEANS = StoreKind("head means", "results/artifacts/discovery/head_means.zarr", _HEAD_MEANS)
DENSE = StoreKind(
    "dense contributions",
    "results/artifacts/<dataset>/dense/<shard>.zarr",
    {
        "contribution": Array(
            ("view", "head", "neuron", "embed"), "float", "embedding units", "r[h, n] = s[h, n] w[h, n] + b[h]"
        ),
        "image_id": VIEW_TABLE["image_id"],
    },
)
PAIR_MOMENTS = StoreKind(
    "pair moments",
    "results/artifacts/discovery/moments/<shard>.zarr",
    {
        "sum": Array(("head", "neuron"), "float", "activation", "sum of s[h, n] over the shard's views"),
        "square_sum": Array(("head", "neuron"), "float", "activation²", "sum of s[h, n]² over the shard's views"),
        "extreme": Array(
            ("head", "neuron", "kept"), "float", "activation", "smallest and largest s[h, n], `top_images` of each, ascending"
        ),
    },
)
