def source_options(dataset):
    """Return the options that describe the source of a data set's images."""
    known = dict(config["datasets"][dataset])
    known["path"] = source_path(dataset)
    known["labels"] = known["labels"] and found_at(known["labels"])
    names = (
        "layout",
        "path",
        "split",
        "path_column",
        "mask_column",
        "group_column",
        "label_column",
        "labels",
        "bad_images",
    )
    return [
        part
        for name in names
        if known[name] is not None
        for part in (f"--{name.replace('_', '-')}", known[name])
    ] + copy_options(dataset)


def source_files(dataset):
    """Return the table or folder of a data set. Demo tables come with their folder of drawn images. For a table at a URL,
    return its folder."""
    path = config["datasets"][dataset]["path"]
    if is_url(path):
        return [given(source_root(dataset))]
    made = Path(path).is_relative_to(DEMO_FOLDER)
    return [given(path)] + ([str(Path(path).with_suffix(""))] if made else [])


def label_files(dataset):
    """Return the label table of a data set, if it has one."""
    labels = config["datasets"][dataset]["labels"]
    return [given(labels)] if labels else []


def class_options(dataset):
    """Return the options that define the classes of a data set."""
    known = config["datasets"][dataset]
    options = ["--layout", known["layout"], "--path", source_path(dataset)]
    options += ["--split", known["split"]] if known["split"] else []
    if isinstance(known["classes"], str):
        options += ["--class-file", found_at(known["classes"])]
    elif known["classes"]:
        options += ["--classes", *known["classes"]]
    options += ["--reduce-zero"] if known["reduce_zero_label"] else []
    return options + ["--ignore", known["ignore"]]


def class_files(dataset):
    """Return the files that define the classes of a data set: the class file, that of a published layout, or the staged copy
    of the data set."""
    known = config["datasets"][dataset]
    named = [given(known["classes"])] if isinstance(known["classes"], str) else []
    layout = LAYOUTS[known["layout"]]
    if layout.has_classes:
        files = layout.class_files(Path(known["path"]))
        named += [local(str(path)) for path in files] + copied_images(dataset)
    return named


def view_options(dataset):
    """Return the options for the views of a data set: sliding crops for segmentation, the model's own crop otherwise."""
    section = config["segmentation"]
    if dataset not in section["datasets"]:
        return ["--views", "centre"]
    sizes = [("--scale", "scale"), ("--crop", "crop"), ("--stride", "stride")]
    options = [part for flag, name in sizes for part in (flag, section[name])]
    block = [] if section["block"] is None else ["--block", section["block"]]
    return ["--views", "sliding", *options, *block]


rule index_images:
    input:
        source=lambda wildcards: source_files(wildcards.dataset),
        labels=lambda wildcards: label_files(wildcards.dataset),
    output:
        images="results/artifacts/{dataset}/images.parquet",
    log:
        "logs/index_images/{dataset}.log",
    benchmark:
        "results/benchmarks/index_images/{dataset}.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 2
    resources:
        mem_mb=memory(2000),
        runtime=60,
    params:
        source=lambda wildcards: source_options(wildcards.dataset),
        code=code("index_images"),
    shell:
        """
        nadpipe index-images \
            {params.source:q} --output {output.images:q} --threads {threads} \
            2>{log}
        """


rule index_classes:
    input:
        files=lambda wildcards: class_files(wildcards.dataset),
    output:
        classes="results/artifacts/{dataset}/classes.parquet",
    log:
        "logs/index_classes/{dataset}.log",
    benchmark:
        "results/benchmarks/index_classes/{dataset}.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        classes=lambda wildcards: class_options(wildcards.dataset),
        code=code("index_classes"),
    shell:
        """
        nadpipe index-classes \
            {params.classes:q} --dataset {wildcards.dataset} --output {output.classes:q} \
            2>{log}
        """


rule extract_features:
    input:
        images="results/artifacts/{dataset}/images.parquet",
        source=lambda wildcards: copied_images(wildcards.dataset),
        files=model_files(),
    output:
        features=directory("results/artifacts/{dataset}/features/{shard}.zarr"),
    log:
        "logs/extract_features/{dataset}/{shard}.log",
    benchmark:
        "results/benchmarks/extract_features/{dataset}/{shard}.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 2
    resources:
        mem_mb=memory(8000),
        runtime=240,
        gpu=1 if config["device"] != "cpu" else 0,
        device=config["device"],
        batch_size=config["features"]["batch_size"],
        workers=config["features"]["workers"],
    params:
        model=model_options(),
        copied=lambda wildcards: copy_options(wildcards.dataset),
        shards=lambda wildcards: config["datasets"][wildcards.dataset]["shards"],
        views=lambda wildcards: view_options(wildcards.dataset),
        precision=config["features"]["precision"],
        dtype=config["features"]["dtype"],
        code=code("extract_features"),
    shell:
        """
        nadpipe extract-features \
            {params.model:q} --images {input.images:q} {params.copied:q} --output {output.features:q} \
            --shard {wildcards.shard} --shards {params.shards} {params.views:q} \
            --precision {params.precision} --dtype {params.dtype} \
            --batch-size {resources.batch_size} --workers {resources.workers} --device {resources.device:q} \
            2>{log}
        """


rule compute_contributions:
    input:
        features="results/artifacts/{dataset}/features/{shard}.zarr",
        readout="results/artifacts/model/readout.zarr",
    output:
        contributions=directory(
            "results/artifacts/{dataset}/contributions/{shard}.zarr"
        ),
        means=directory("results/artifacts/{dataset}/head_means/{shard}.zarr"),
    log:
        "logs/compute_contributions/{dataset}/{shard}.log",
    benchmark:
        "results/benchmarks/compute_contributions/{dataset}/{shard}.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=60,
        batch_size=config["contributions"]["batch_size"],
    params:
        dtype=config["contributions"]["dtype"],
        tolerance=config["contributions"]["tolerance"],
        code=code("compute_contributions"),
    shell:
        """
        nadpipe compute-contributions \
            --features {input.features:q} --readout {input.readout:q} \
            --output {output.contributions:q} --output-means {output.means:q} --dtype {params.dtype} \
            --batch-size {resources.batch_size} --tolerance {params.tolerance} \
            2>{log}
        """


rule average_heads:
    input:
        means=shards("discovery", "head_means"),
    output:
        means=directory("results/artifacts/discovery/head_means.zarr"),
    log:
        "logs/average_heads.log",
    benchmark:
        "results/benchmarks/average_heads.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        code=code("average_heads"),
    shell:
        """
        nadpipe average-heads \
            --means {input.means:q} --output {output.means:q} \
            2>{log}
        """


# Runs only for the data sets in dense.datasets, or when a store is requested by path.
rule export_dense:
    input:
        contributions="results/artifacts/{dataset}/contributions/{shard}.zarr",
        readout="results/artifacts/model/readout.zarr",
    output:
        dense=directory("results/artifacts/{dataset}/dense/{shard}.zarr"),
    log:
        "logs/export_dense/{dataset}/{shard}.log",
    benchmark:
        "results/benchmarks/export_dense/{dataset}/{shard}.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=480,
    params:
        dtype=config["dense"]["dtype"],
        code=code("export_dense"),
    shell:
        """
        nadpipe export-dense \
            --contributions {input.contributions:q} --readout {input.readout:q} \
            --output {output.dense:q} --dtype {params.dtype} \
            2>{log}
        """
