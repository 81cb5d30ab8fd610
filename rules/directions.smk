include: "helpers/directions.smk"


rule accumulate_pairs:
    input:
        images="results/artifacts/discovery/images.parquet",
        contributions="results/artifacts/discovery/contributions/{shard}.zarr",
    output:
        moments=directory("results/artifacts/discovery/moments/{shard}.zarr"),
    log:
        "logs/accumulate_pairs/{shard}.log",
    benchmark:
        "results/benchmarks/accumulate_pairs/{shard}.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        top=top_options(),
        code=code("accumulate_pairs"),
    shell:
        """
        nadpipe accumulate-pairs \
            --images {input.images:q} --contributions {input.contributions:q} \
            --output {output.moments:q} {params.top} \
            2>{log}
        """


rule fit_directions:
    input:
        moments=shards("discovery", "moments"),
        contributions=lambda wildcards: coefficients_for(wildcards.unit),
        readout="results/artifacts/model/readout.zarr",
    output:
        directions=directory("results/artifacts/directions/{unit}.zarr"),
    log:
        "logs/fit_directions/{unit}.log",
    benchmark:
        "results/benchmarks/fit_directions/{unit}.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        contributions=lambda wildcards, input: contributions_options(
            input.contributions
        ),
        components=lambda wildcards: component_options(wildcards.unit),
        code=code("fit_directions"),
    shell:
        """
        nadpipe fit-directions \
            --unit {wildcards.unit} --moments {input.moments:q} {params.contributions:q} \
            --readout {input.readout:q} --output {output.directions:q} {params.components} \
            2>{log}
        """


# The texts of pairs are a result. The texts of neurons and heads are intermediate: tabulate_units reads them.
rule assign_texts:
    input:
        directions="results/artifacts/directions/pair.zarr",
        dictionary="results/artifacts/text/dictionary.zarr",
        readout="results/artifacts/model/readout.zarr",
    output:
        assignments="results/assignments.parquet",
    log:
        "logs/assign_texts/pair.log",
    benchmark:
        "results/benchmarks/assign_texts/pair.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 2
    resources:
        mem_mb=memory(4000),
        runtime=120,
        gpu=1 if config["assignments"]["device"] != "cpu" else 0,
        device=config["assignments"]["device"],
    params:
        unit="pair",
        nearest=config["assignments"]["nearest"],
        atoms=config["assignments"]["atoms"],
        sparse_share=config["assignments"]["sparse_share"],
        code=code("assign_texts"),
    shell:
        """
        nadpipe assign-texts \
            --unit {params.unit} --directions {input.directions:q} --dictionary {input.dictionary:q} \
            --readout {input.readout:q} --output {output.assignments:q} \
            --nearest {params.nearest} --atoms {params.atoms} --sparse-share {params.sparse_share} \
            --device {resources.device:q} \
            2>{log}
        """


use rule assign_texts as assign_texts_to_subspaces with:
    input:
        directions="results/artifacts/directions/{unit}.zarr",
        dictionary="results/artifacts/text/dictionary.zarr",
        readout="results/artifacts/model/readout.zarr",
    output:
        assignments="results/artifacts/assignments/{unit}.parquet",
    log:
        "logs/assign_texts/{unit}.log",
    benchmark:
        "results/benchmarks/assign_texts/{unit}.tsv"
    params:
        unit="{unit}",
        nearest=config["assignments"]["nearest"],
        atoms=config["assignments"]["atoms"],
        sparse_share=config["assignments"]["sparse_share"],
        code=code("assign_texts"),


rule correlate_texts:
    input:
        contributions=shards("discovery", "contributions"),
        directions="results/artifacts/directions/pair.zarr",
        dictionary="results/artifacts/text/dictionary.zarr",
    output:
        correlated="results/artifacts/assignments/correlated.parquet",
    log:
        "logs/correlate_texts.log",
    benchmark:
        "results/benchmarks/correlate_texts.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 2
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        nearest=config["assignments"]["nearest"],
        code=code("correlate_texts"),
    shell:
        """
        nadpipe correlate-texts \
            --contributions {input.contributions:q} --directions {input.directions:q} --dictionary {input.dictionary:q} \
            --output {output.correlated:q} --nearest {params.nearest} \
            2>{log}
        """


rule tabulate_units:
    input:
        directions="results/artifacts/directions/{unit}.zarr",
        assignments=lambda wildcards: assignments_of(wildcards.unit),
        correlated=lambda wildcards: correlations_of(wildcards.unit),
    output:
        table="results/{unit}s.parquet",
    log:
        "logs/tabulate_units/{unit}.log",
    benchmark:
        "results/benchmarks/tabulate_units/{unit}.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        correlated=lambda wildcards, input: correlated_options(input.correlated),
        code=code("tabulate_units"),
    shell:
        """
        nadpipe tabulate-units \
            --unit {wildcards.unit} --directions {input.directions:q} --assignments {input.assignments:q} \
            --output {output.table:q} {params.correlated:q} \
            2>{log}
        """
