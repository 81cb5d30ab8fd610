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
            ("view",), "float", "relative", "‖attention pool of the stored activation - embedding‖ / ‖embedding‖, 0 in float32"
        ),
        **VIEW_TABLE,
    },
    first={"token": 1},  # token 0 is the pooled token, which has no activation of its own
)
SAMPLED_VIEWS = StoreKind(
    "sampled views",
    "results/artifacts/discovery/samples/<shard>.zarr",
    {name: FEATURES.arrays[name] for name in ("activation", "image_id")},
    first=FEATURES.first,
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
SHARD_MEANS = StoreKind("head means of a shard", "results/artifacts/<dataset>/head_means/<shard>.zarr", _HEAD_MEANS)
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
