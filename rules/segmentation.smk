rule segment_images:
    input:
        images="results/artifacts/segmentation/images.parquet",
        features="results/artifacts/segmentation/features/{shard}.zarr",
        selection="results/artifacts/selection/classes.zarr",
        contributions=shards("discovery", "contributions"),
        attnpool="results/artifacts/model/attnpool.zarr",
    output:
        confusion="results/artifacts/segmentation/confusion/{shard}.parquet",
        labels=directory("results/segmentation/segmentation/labels/{shard}"),
    log:
        "logs/segment_images/{shard}.log",
    benchmark:
        "results/benchmarks/segment_images/{shard}.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 2
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        methods=config["segmentation"]["methods"],
        temperature=config["segmentation"]["temperature"],
        sink=config["segmentation"]["sink"],
        ignore=config["segmentation"]["ignore"],
        code=code("segment_images"),
    shell:
        """
        nadpipe segment-images \
            --images {input.images:q} --features {input.features:q} --selection {input.selection:q} \
            --contributions {input.contributions:q} --attnpool-store {input.attnpool:q} \
            --output {output.confusion:q} --output-labels {output.labels:q} --methods {params.methods} \
            --temperature {params.temperature} --sink {params.sink} --ignore {params.ignore} \
            2>{log}
        """


rule score_segmentation:
    input:
        confusion=[
            f"results/artifacts/segmentation/confusion/{shard}.parquet"
            for shard in shard_numbers("segmentation")
        ],
        attnpool="results/artifacts/model/attnpool.zarr",
    output:
        table="results/segmentation.csv",
        classes="results/segmentation/per_class.parquet",
    log:
        "logs/score_segmentation.log",
    benchmark:
        "results/benchmarks/score_segmentation.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        classes=config["segmentation"]["classes"],
        code=code("score_segmentation"),
    shell:
        """
        nadpipe score-segmentation \
            --confusion {input.confusion:q} --attnpool-store {input.attnpool:q} \
            --classes {params.classes:q} --output {output.table:q} --output-classes {output.classes:q} \
            2>{log}
        """


rule draw_overlays:
    input:
        images="results/artifacts/segmentation/images.parquet",
        labels=[
            f"results/segmentation/segmentation/labels/{shard}"
            for shard in shard_numbers("segmentation")
        ],
    output:
        overlays=directory("results/segmentation/segmentation/overlays"),
    log:
        "logs/draw_overlays.log",
    benchmark:
        "results/benchmarks/draw_overlays.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        classes=config["segmentation"]["classes"],
        methods=config["segmentation"]["methods"],
        overlays=config["segmentation"]["overlays"],
        ignore=config["segmentation"]["ignore"],
        code=code("draw_overlays"),
    shell:
        """
        nadpipe draw-overlays \
            --images {input.images:q} --labels {input.labels:q} --classes {params.classes:q} \
            --output {output.overlays:q} --methods {params.methods} --count {params.overlays} --ignore {params.ignore} \
            2>{log}
        """
