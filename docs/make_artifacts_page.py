"""Print docs/artifacts.md from the schemas in nadpipe/artifacts.py: python docs/make_artifacts_page.py > docs/artifacts.md"""

from nadpipe.artifacts import CSV, PARQUET, ZARR

from nadpipe.store.schema import FORMAT

WHERE = {
    "attention pool": "results/artifacts/model/readout.zarr",
    "features": "results/artifacts/&lt;dataset&gt;/features/&lt;shard&gt;.zarr",
    "contributions": "results/artifacts/&lt;dataset&gt;/contributions/&lt;shard&gt;.zarr",
    "dense contributions": "results/artifacts/&lt;dataset&gt;/dense/&lt;shard&gt;.zarr (for the data sets in `dense.datasets`)",
    "pair moments": "results/artifacts/discovery/moments/&lt;shard&gt;.zarr",
    "pair directions": "results/artifacts/directions/pair.zarr",
    "neuron directions": "results/artifacts/directions/neuron.zarr",
    "head directions": "results/artifacts/directions/head.zarr",
    "text": "results/artifacts/text/&lt;set&gt;.zarr (dictionary, concepts, and one for the classes of each data set)",
    "selection": "results/artifacts/selection/&lt;set&gt;.zarr (concepts, and one for each data set)",
    "images": "results/artifacts/&lt;dataset&gt;/images.parquet",
    "pairs": "results/pairs.parquet",
    "neurons": "results/neurons.parquet",
    "heads": "results/heads.parquet",
    "pair assignments": "results/assignments.parquet",
    "neuron assignments": "results/artifacts/assignments/neuron.parquet",
    "head assignments": "results/artifacts/assignments/head.parquet",
    "classes": "results/artifacts/&lt;dataset&gt;/classes.parquet",
    "confusion": "results/artifacts/&lt;dataset&gt;/confusion/&lt;shard&gt;.parquet",
    "embedded texts": "results/artifacts/text/cache/&lt;key&gt;/&lt;name&gt;.parquet",
    "per_class": "results/segmentation/per_class.parquet",
    "differences": "results/segmentation/differences.parquet",
    "registers": "results/registers.parquet",
    "shift_scores": "results/shift/scores.parquet",
    "discovered": "results/shift/discovered.parquet",
    "segmentation": "results/segmentation.csv",
    "pair correlations": "results/artifacts/assignments/correlated.parquet",
    "polysemanticity": "results/polysemanticity.parquet",
    "reconstruction": "results/reconstruction.csv",
    "sparsity": "results/sparsity.csv",
    "sparse_text": "results/sparse_text.csv",
    "naming": "results/naming.csv",
    "faithfulness": "results/faithfulness.csv",
    "shift": "results/shift.csv, and results/shift/batches/&lt;dataset&gt;.csv",
}
HEAD = f"""# Artifacts

Made by `python docs/make_artifacts_page.py` from the schemas that nadpipe checks whenever it opens a file; format {FORMAT}.

`<dataset>` is `discovery` (fits the directions), `monitoring` (has groups) or one of `segmentation.datasets` (they have
masks); `<shard>` counts from 0. Zarr stores are format 3, zstd, sharded, consolidated, with named axes; they open with
`xarray.open_zarr`. The axis `token` is 0 for the pooled token, then the spatial tokens row by row. Parquet tables are zstd;
each column carries its comment in the schema (`pyarrow.parquet.read_schema(path).field(name).metadata`). Every Zarr store
and Parquet table is stamped with its kind, the format, the model (a hash of weights, model config and preprocessing; empty
for images.parquet, which no model touched), the architecture, and the fingerprint of the code that made it; a stage refuses
an artifact of another model, kind or format. Everything is written beside its final name and renamed.

Beside these, in `results/segmentation/<dataset>/`: `labels/<shard>/<method>/<image_id>.png`, label maps as indexed PNG in
the data set's palette, whose pixel values are the classes of classes.parquet (`<method>-k<k>` for methods that select
pairs); `overlays/<image_id>.png`; `sheets/<method>.png`, each method's best and worst images; `per_class.png`. And
`results/registers.png`, a plot of registers.parquet.

neurons.parquet and heads.parquet also have `explained_1`, `explained_2`, …: the share of the kept images' centred energy that
each direction explains. images.parquet also has the source table's own columns.
"""


def main() -> None:
    """Print the page."""
    print(HEAD)
    for kind, arrays in ZARR.items():
        print(f"## {WHERE[kind]}\n\n| array | axes | unit | what |\n|---|---|---|---|")
        for name, array in arrays.items():
            print(f"| `{name}` | {', '.join(array.axes)} | {array.unit} | {array.source} |")
        print()
    for kind, columns in PARQUET.items():
        print(f"## {WHERE[kind]}\n\n| column | type | what |\n|---|---|---|")
        for name, column in columns.items():
            kind_of = "string" if str(column.type).startswith("dictionary") else column.type
            print(f"| `{name}` | {kind_of} | {column.comment} |")
        print()
    for at, (kind, columns) in enumerate(CSV.items()):
        print(f"## {WHERE[kind]}\n\n| column | what |\n|---|---|")
        for name, comment in columns.items():
            print(f"| `{name}` | {comment} |")
        if at + 1 < len(CSV):
            print()


if __name__ == "__main__":
    main()
