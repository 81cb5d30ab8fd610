include: "helpers/summary.smk"


rule describe_results:
    input:
        tables=FINAL_TABLES,
        checksums=checksums(FINAL_TABLES),
        images=expand(
            "results/artifacts/{dataset}/images.parquet", dataset=used_datasets()
        ),
        readout="results/artifacts/model/readout.zarr",
        directions="results/artifacts/directions/pair.zarr",
    output:
        provenance="results/provenance.json",
    log:
        "logs/describe_results.log",
    benchmark:
        "results/benchmarks/describe_results.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=10,
    params:
        config=lambda wildcards: settings(
            config=json.dumps(settings_of_results(), sort_keys=True)
        ),
        code=code("describe_results"),
    shell:
        """
        nadpipe describe-results \
            --tables {input.tables:q} --images {input.images:q} --readout {input.readout:q} \
            --directions {input.directions:q} \
            {params.config:q} --output {output.provenance:q} \
            2>{log}
        """


rule find_extremes:
    input:
        contributions=shards("discovery", "contributions"),
        directions="results/artifacts/directions/pair.zarr",
    output:
        extremes=directory("results/artifacts/explorer/extremes.zarr"),
    log:
        "logs/find_extremes.log",
    benchmark:
        "results/benchmarks/find_extremes.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 2
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        shown=config["explorer"]["images"],
        code=code("find_extremes"),
    shell:
        """
        nadpipe find-extremes \
            --contributions {input.contributions:q} --directions {input.directions:q} \
            --output {output.extremes:q} --shown {params.shown} \
            2>{log}
        """


rule map_firing:
    input:
        features="results/artifacts/discovery/features/{shard}.zarr",
        contributions="results/artifacts/discovery/contributions/{shard}.zarr",
        extremes="results/artifacts/explorer/extremes.zarr",
        directions="results/artifacts/directions/pair.zarr",
        readout="results/artifacts/model/readout.zarr",
    output:
        firing=directory("results/artifacts/explorer/firing/{shard}.zarr"),
    log:
        "logs/map_firing/{shard}.log",
    benchmark:
        "results/benchmarks/map_firing/{shard}.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        code=code("map_firing"),
    shell:
        """
        nadpipe map-firing \
            --features {input.features:q} --contributions {input.contributions:q} --extremes {input.extremes:q} \
            --directions {input.directions:q} --readout {input.readout:q} --output {output.firing:q} \
            2>{log}
        """


rule build_explorer:
    input:
        images="results/artifacts/discovery/images.parquet",
        source=lambda wildcards: copied_images("discovery"),
        extremes="results/artifacts/explorer/extremes.zarr",
        firing=[
            f"results/artifacts/explorer/firing/{shard}.zarr"
            for shard in shard_numbers("discovery")
        ],
        pairs="results/pairs.parquet",
        neurons="results/neurons.parquet",
        heads="results/heads.parquet",
        assignments="results/assignments.parquet",
        correlated="results/artifacts/assignments/correlated.parquet",
        readout="results/artifacts/model/readout.zarr",
    output:
        explorer=directory("results/explorer"),
    log:
        "logs/build_explorer.log",
    benchmark:
        "results/benchmarks/build_explorer.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 2
    resources:
        mem_mb=memory(4000),
        runtime=120,
    params:
        copied=lambda wildcards: copy_options("discovery"),
        thumbnail=config["explorer"]["thumbnail"],
        code=code("build_explorer"),
        web=files_fingerprint("pages/web"),
    shell:
        """
        nadpipe build-explorer \
            --images {input.images:q} {params.copied:q} --extremes {input.extremes:q} --firing {input.firing:q} \
            --pairs {input.pairs:q} --neurons {input.neurons:q} --heads {input.heads:q} \
            --assignments {input.assignments:q} --correlated {input.correlated:q} --readout {input.readout:q} \
            --output {output.explorer:q} --thumbnail {params.thumbnail} \
            2>{log}
        """


rule make_report:
    input:
        provenance="results/provenance.json",
        tables=FINAL_TABLES,
        checksums=checksums(FINAL_TABLES),
        overlays=of_segmentation("results/segmentation/{dataset}/overlays"),
        images=expand(
            "results/artifacts/{dataset}/images.parquet", dataset=used_datasets()
        ),
        source=lambda wildcards: copied_images("monitoring"),
        head_means=[
            store
            for dataset in ("discovery", "monitoring")
            for store in shards(dataset, "head_means")
        ],
    output:
        report=report(
            "results/report.html", caption="captions/report.rst", category="Run"
        ),
    log:
        "logs/make_report.log",
    benchmark:
        "results/benchmarks/make_report.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=20,
    params:
        results=lambda wildcards, input: os.path.dirname(input.provenance),
        copied=lambda wildcards: copy_options("monitoring"),
        segmented=config["segmentation"]["datasets"],
        texts=lambda wildcards: settings(
            concepts=config["shift"]["concepts"],
            missing=json.dumps(MISSING),
            unmasked=json.dumps(UNMASKED),
        ),
        code=code("make_report"),
        template=files_fingerprint("pages/templates"),
    shell:
        """
        nadpipe make-report \
            --results {params.results:q} {params.copied:q} --head-means {input.head_means:q} --output {output.report:q} \
            --segmented {params.segmented:q} {params.texts:q} \
            2>{log}
        """
