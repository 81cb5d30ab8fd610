"""Schemas of embedded texts."""

from nadpipe.store.schema import Array, Column, StoreKind, TableKind

TEXT = StoreKind(
    "text",
    "results/artifacts/text/<set>.zarr",
    {
        "embedding": Array(("text", "embed"), "float", "unit length, not centred", "mean over templates"),
        "text": Array(("text",), "text", "text", "config"),
    },
)
CACHED_TEXTS = TableKind(
    "embedded texts",
    "results/artifacts/text/cache/<key>/<name>.parquet",
    {
        "key": Column("string", "checksum of the model, the code, the templates, the text and its embedding"),
        "text": Column("string", "the text, without templates"),
        "embedding": Column("list<float32>", "unit length, mean over templates; as long as the model's embedding"),
    },
)
