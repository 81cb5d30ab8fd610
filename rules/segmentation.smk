include: "helpers/segmentation.smk"


rule sample_views:
    input:
        images="results/artifacts/discovery/images.parquet",
        features="results/artifacts/discovery/features/{shard}.zarr",
    output:
        samples=directory("results/artifacts/discovery/samples/{shard}.zarr"),
    log:
        "logs/sample_views/{shard}.log",
    benchmark:
        "results/benchmarks/sample_views/{shard}.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        number=config["registers"]["images"],
        code=code("sample_views"),
    shell:
        """
        nadpipe sample-views \
            --images {input.images:q} --features {input.features:q} --output {output.samples:q} --number {params.number} \
            2>{log}
        """


rule measure_registers:
    input:
        samples=shards("discovery", "samples"),
        readout="results/artifacts/model/readout.zarr",
    output:
        table="results/registers.parquet",
    log:
        "logs/measure_registers.log",
    benchmark:
        "results/benchmarks/measure_registers.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 2
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        sink_factor=config["registers"]["sink_factor"],
        rank_by=config["registers"]["rank_by"],
        code=code("measure_registers"),
    shell:
        """
        nadpipe measure-registers \
            --samples {input.samples:q} --readout {input.readout:q} \
            --output {output.table:q} --sink-factor {params.sink_factor} --rank-by {params.rank_by} \
            2>{log}
        """


rule segment_images:
    input:
        images="results/artifacts/{dataset}/images.parquet",
        source=lambda wildcards: copied_images(wildcards.dataset),
        classes="results/artifacts/{dataset}/classes.parquet",
        masks=lambda wildcards: checked_masks(wildcards.dataset),
        features="results/artifacts/{dataset}/features/{shard}.zarr",
        selection="results/artifacts/selection/{dataset}.zarr",
        head_means="results/artifacts/discovery/head_means.zarr",
        registers="results/registers.parquet",
        readout="results/artifacts/model/readout.zarr",
    output:
        confusion="results/artifacts/{dataset}/confusion/{shard}.parquet",
        labels=directory("results/segmentation/{dataset}/labels/{shard}"),
    log:
        "logs/segment_images/{dataset}/{shard}.log",
    benchmark:
        "results/benchmarks/segment_images/{dataset}/{shard}.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 2
    resources:
        mem_mb=memory(4000),
        runtime=120,
    params:
        copied=lambda wildcards: copy_options(wildcards.dataset),
        methods=config["segmentation"]["methods"],
        k=config["segmentation"]["k"],
        temperature=config["segmentation"]["temperature"],
        sink=config["segmentation"]["sink"],
        sink_replacement=config["segmentation"]["sink_replacement"],
        labelling=lambda wildcards: labelling_options(wildcards.dataset),
        code=code("segment_images"),
    shell:
        """
        nadpipe segment-images \
            --images {input.images:q} {params.copied:q} --classes {input.classes:q} --features {input.features:q} \
            --selection {input.selection:q} --head-means {input.head_means:q} --registers {input.registers:q} \
            --readout {input.readout:q} --output {output.confusion:q} --output-labels {output.labels:q} \
            --methods {params.methods} --k {params.k} --temperature {params.temperature} --sink {params.sink} \
            --sink-replacement {params.sink_replacement} {params.labelling} \
            2>{log}
        """


rule score_segmentation:
    input:
        confusion=segmented_shards(
            "results/artifacts/{dataset}/confusion/{shard}.parquet", with_masks()
        ),
        classes=[
            f"results/artifacts/{dataset}/classes.parquet" for dataset in with_masks()
        ],
    output:
        table=final("results/segmentation.csv"),
        checksum="results/segmentation.csv.sha256",
        classes="results/segmentation/per_class.parquet",
        differences="results/segmentation/differences.parquet",
    log:
        "logs/score_segmentation.log",
    benchmark:
        "results/benchmarks/score_segmentation.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        confidence=config["segmentation"]["confidence"],
        code=code("score_segmentation"),
    shell:
        """
        nadpipe score-segmentation \
            --confusion {input.confusion:q} --classes {input.classes:q} \
            --output {output.table:q} --output-classes {output.classes:q} --output-differences {output.differences:q} \
            --confidence {params.confidence} \
            2>{log}
        """


rule measure_shares:
    input:
        confusion=segmented_shards(
            "results/artifacts/{dataset}/confusion/{shard}.parquet",
            config["segmentation"]["datasets"],
        ),
        classes=of_segmentation("results/artifacts/{dataset}/classes.parquet"),
    output:
        table=final("results/shares.csv"),
        checksum="results/shares.csv.sha256",
        images="results/segmentation/image_shares.parquet",
    log:
        "logs/measure_shares.log",
    benchmark:
        "results/benchmarks/measure_shares.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        code=code("measure_shares"),
    shell:
        """
        nadpipe measure-shares \
            --confusion {input.confusion:q} --classes {input.classes:q} \
            --output {output.table:q} --output-images {output.images:q} \
            2>{log}
        """


rule draw_overlays:
    input:
        images="results/artifacts/{dataset}/images.parquet",
        source=lambda wildcards: copied_images(wildcards.dataset),
        classes="results/artifacts/{dataset}/classes.parquet",
        label_maps=lambda wildcards: segmented_shards(
            "results/segmentation/{dataset}/labels/{shard}", [wildcards.dataset]
        ),
    output:
        overlays=report(
            directory("results/segmentation/{dataset}/overlays"),
            caption="captions/overlays.rst",
            category="Segmentation",
            patterns=["{name}.png"],
            subcategory="Overlays",
        ),
    log:
        "logs/draw_overlays/{dataset}.log",
    benchmark:
        "results/benchmarks/draw_overlays/{dataset}.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        copied=lambda wildcards: copy_options(wildcards.dataset),
        overlays=config["segmentation"]["overlays"],
        code=code("draw_overlays"),
    shell:
        """
        nadpipe draw-overlays \
            --images {input.images:q} {params.copied:q} --classes {input.classes:q} --label-maps {input.label_maps:q} \
            --output {output.overlays:q} --count {params.overlays} \
            2>{log}
        """


rule draw_contact_sheets:
    input:
        images="results/artifacts/{dataset}/images.parquet",
        source=lambda wildcards: copied_images(wildcards.dataset),
        classes="results/artifacts/{dataset}/classes.parquet",
        confusion=lambda wildcards: segmented_shards(
            "results/artifacts/{dataset}/confusion/{shard}.parquet",
            [wildcards.dataset],
        ),
        label_maps=lambda wildcards: segmented_shards(
            "results/segmentation/{dataset}/labels/{shard}", [wildcards.dataset]
        ),
    output:
        sheets=report(
            directory("results/segmentation/{dataset}/sheets"),
            caption="captions/sheets.rst",
            category="Segmentation",
            patterns=["{name}.png"],
            subcategory="Sheets",
        ),
    log:
        "logs/draw_contact_sheets/{dataset}.log",
    benchmark:
        "results/benchmarks/draw_contact_sheets/{dataset}.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        copied=lambda wildcards: copy_options(wildcards.dataset),
        extremes=config["segmentation"]["extremes"],
        code=code("draw_contact_sheets"),
    shell:
        """
        nadpipe draw-contact-sheets \
            --images {input.images:q} {params.copied:q} --classes {input.classes:q} --confusion {input.confusion:q} \
            --label-maps {input.label_maps:q} --output {output.sheets:q} --count {params.extremes} \
            2>{log}
        """
