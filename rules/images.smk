include: "helpers/images.smk"


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
        mem_mb=memory(4000),
        runtime=60,
    params:
        source=lambda wildcards: source_options(wildcards.dataset),
        files=lambda wildcards: listed_files(wildcards.dataset),
        layout=lambda wildcards: layout_code(wildcards.dataset),
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
        layout=lambda wildcards: layout_code(wildcards.dataset),
        code=code("index_classes"),
    shell:
        """
        nadpipe index-classes \
            {params.classes:q} --dataset {wildcards.dataset} --output {output.classes:q} \
            2>{log}
        """


rule check_masks:
    input:
        images="results/artifacts/{dataset}/images.parquet",
        source=lambda wildcards: copied_images(wildcards.dataset),
        classes="results/artifacts/{dataset}/classes.parquet",
    output:
        masks="results/artifacts/{dataset}/masks.parquet",
    log:
        "logs/check_masks/{dataset}.log",
    benchmark:
        "results/benchmarks/check_masks/{dataset}.tsv"
    priority: 100  # before features, so that a wrong mask is found early
    conda:
        "../envs/nadpipe.yaml"
    threads: 2
    resources:
        mem_mb=memory(2000),
        runtime=60,
    params:
        copied=lambda wildcards: copy_options(wildcards.dataset),
        code=code("check_masks"),
    shell:
        """
        nadpipe check-masks \
            --images {input.images:q} {params.copied:q} --classes {input.classes:q} --output {output.masks:q} \
            --threads {threads} \
            2>{log}
        """


rule extract_features:
    input:
        images="results/artifacts/{dataset}/images.parquet",
        source=lambda wildcards: copied_images(wildcards.dataset),
        files=lambda wildcards: model_files(),
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
        model=lambda wildcards: model_options(),
        block=block_options(),
        copied=lambda wildcards: copy_options(wildcards.dataset),
        shards=lambda wildcards: config["datasets"][wildcards.dataset]["shards"],
        views=lambda wildcards: view_options(wildcards.dataset),
        precision=config["features"]["precision"],
        dtype=config["features"]["dtype"],
        code=code("extract_features"),
    shell:
        """
        nadpipe extract-features \
            {params.model:q} {params.block:q} \
            --images {input.images:q} {params.copied:q} --output {output.features:q} \
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
