"""Schema of the exported readout."""

from nadpipe.store.schema import Array, StoreKind

READOUT = StoreKind(
    "readout",
    "results/artifacts/model/readout.zarr",
    {
        "value": Array(("head", "width", "stream"), "float", "weight", "W_V^h, with the centring and γ of the norm before it"),
        "value_bias": Array(("head", "width"), "float", "bias", "b_V^h, with β of that norm"),
        "output": Array(("head", "embed", "width"), "float", "weight", "W_O^h, with the norm after it and the projection"),
        "output_bias": Array(("embed",), "float", "bias", "b_O, likewise"),
        "layer": Array(
            ("head",),
            "int",
            "index",
            "block of the tower that the head is in; for a pool, 0 in a CLIP-ResNet and the number of blocks in a transformer",
        ),
        "write": Array(("neuron", "stream"), "float", "weight", "U: what each neuron writes; missing for unit vectors"),
        "query": Array(("head", "width", "stream"), "float", "weight", "W_Q^h"),
        "query_bias": Array(("head", "width"), "float", "bias", "b_Q^h"),
        "key": Array(("head", "width", "stream"), "float", "weight", "W_K^h"),
        "key_bias": Array(("head", "width"), "float", "bias", "b_K^h"),
        "positional_embedding": Array(("token", "stream"), "float", "activation", "added to the tokens that heads read"),
        "frequency": Array(("frequency",), "float", "weight", "rotary positions: radians across the image's side"),
    },
    optional=("write", "query", "query_bias", "key", "key_bias", "positional_embedding", "frequency"),
)
