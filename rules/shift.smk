include: "helpers/shift.smk"


rule score_shift:
    input:
        images="results/artifacts/monitoring/images.parquet",
        contributions=shards("monitoring", "contributions"),
        selection="results/artifacts/selection/concepts.zarr",
        readout="results/artifacts/model/readout.zarr",
    output:
        table=final("results/shift.csv"),
        checksum="results/shift.csv.sha256",
        scores="results/shift/scores.parquet",
    log:
        "logs/score_shift.log",
    benchmark:
        "results/benchmarks/score_shift.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=30,
    params:
        comparison=lambda wildcards: comparison_options(),
        confidence=config["shift"]["confidence"],
        code=code("score_shift"),
    shell:
        """
        nadpipe score-shift \
            --images {input.images:q} --contributions {input.contributions:q} --selection {input.selection:q} \
            --readout {input.readout:q} --output {output.table:q} --output-scores {output.scores:q} \
            {params.comparison:q} --confidence {params.confidence} \
            2>{log}
        """


rule rank_shifts:
    input:
        images="results/artifacts/monitoring/images.parquet",
        contributions=shards("monitoring", "contributions"),
        pairs="results/pairs.parquet",
    output:
        table="results/shift/discovered.parquet",
    log:
        "logs/rank_shifts.log",
    benchmark:
        "results/benchmarks/rank_shifts.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=30,
    params:
        reference=lambda wildcards: reference_options(),
        examples=config["shift"]["examples"],
        small_group=config["shift"]["small_group"],
        code=code("rank_shifts"),
    shell:
        """
        nadpipe rank-shifts \
            --images {input.images:q} --contributions {input.contributions:q} --pairs {input.pairs:q} \
            --output {output.table:q} {params.reference:q} \
            --examples {params.examples} --small-group {params.small_group} \
            2>{log}
        """


# A batch is any further data set. It is compared with the stored scores of the monitoring images.
rule score_batch:
    input:
        images="results/artifacts/{dataset}/images.parquet",
        contributions=lambda wildcards: shards(wildcards.dataset, "contributions"),
        selection="results/artifacts/selection/concepts.zarr",
        scores="results/shift/scores.parquet",
        readout="results/artifacts/model/readout.zarr",
    output:
        table="results/shift/batches/{dataset}.csv",
        checksum="results/shift/batches/{dataset}.csv.sha256",
    log:
        "logs/score_batch/{dataset}.log",
    benchmark:
        "results/benchmarks/score_batch/{dataset}.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=30,
    params:
        comparison=lambda wildcards: comparison_options(),
        confidence=config["shift"]["confidence"],
        code=code("score_batch"),
    shell:
        """
        nadpipe score-batch \
            --images {input.images:q} --contributions {input.contributions:q} --selection {input.selection:q} \
            --reference-scores {input.scores:q} --readout {input.readout:q} --output {output.table:q} \
            --dataset {wildcards.dataset} {params.comparison:q} \
            --confidence {params.confidence} \
            2>{log}
        """
