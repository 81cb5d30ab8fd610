include: "helpers/analyses.smk"


rule measure_sparsity:
    input:
        images=of_analyses("results/artifacts/{dataset}/images.parquet"),
        contributions=shards(config["analyses"]["dataset"], "contributions"),
        labels="results/artifacts/text/labels.zarr",
        pairs="results/artifacts/directions/pair.zarr",
        neurons="results/artifacts/directions/neuron.zarr",
        readout="results/artifacts/model/readout.zarr",
    output:
        table=final("results/sparsity.csv"),
        checksum="results/sparsity.csv.sha256",
    log:
        "logs/measure_sparsity.log",
    benchmark:
        "results/benchmarks/measure_sparsity.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 2
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        dataset=config["analyses"]["dataset"],
        most=config["analyses"]["images"],
        confidence=config["analyses"]["confidence"],
        shares=config["analyses"]["shares"],
        draws=config["analyses"]["draws"],
        seed=config["seed"],
        code=code("measure_sparsity"),
    shell:
        """
        nadpipe measure-sparsity \
            --images {input.images:q} --contributions {input.contributions:q} --labels {input.labels:q} \
            --pair-directions {input.pairs:q} --neuron-directions {input.neurons:q} \
            --readout {input.readout:q} --output {output.table:q} \
            --dataset {params.dataset} --most {params.most} --confidence {params.confidence} \
            --shares {params.shares} --draws {params.draws} --seed {params.seed} \
            2>{log}
        """


rule measure_reconstruction:
    input:
        images=of_analyses("results/artifacts/{dataset}/images.parquet"),
        contributions=shards(config["analyses"]["dataset"], "contributions"),
        labels="results/artifacts/text/labels.zarr",
        pairs="results/artifacts/directions/pair.zarr",
        neurons="results/artifacts/directions/neuron.zarr",
        heads="results/artifacts/directions/head.zarr",
        readout="results/artifacts/model/readout.zarr",
    output:
        table=final("results/reconstruction.csv"),
        checksum="results/reconstruction.csv.sha256",
    log:
        "logs/measure_reconstruction.log",
    benchmark:
        "results/benchmarks/measure_reconstruction.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 2
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        dataset=config["analyses"]["dataset"],
        most=config["analyses"]["images"],
        confidence=config["analyses"]["confidence"],
        code=code("measure_reconstruction"),
    shell:
        """
        nadpipe measure-reconstruction \
            --images {input.images:q} --contributions {input.contributions:q} --labels {input.labels:q} \
            --pair-directions {input.pairs:q} --neuron-directions {input.neurons:q} --head-directions {input.heads:q} \
            --readout {input.readout:q} --output {output.table:q} \
            --dataset {params.dataset} --most {params.most} --confidence {params.confidence} \
            2>{log}
        """


rule measure_sparse_text:
    input:
        images=of_analyses("results/artifacts/{dataset}/images.parquet"),
        contributions=shards(config["analyses"]["dataset"], "contributions"),
        labels="results/artifacts/text/labels.zarr",
        pairs="results/artifacts/directions/pair.zarr",
        neurons="results/artifacts/directions/neuron.zarr",
        heads="results/artifacts/directions/head.zarr",
        pair_texts=assignments_of("pair"),
        neuron_texts=assignments_of("neuron"),
        head_texts=assignments_of("head"),
        dictionary="results/artifacts/text/dictionary.zarr",
        readout="results/artifacts/model/readout.zarr",
    output:
        table=final("results/sparse_text.csv"),
        checksum="results/sparse_text.csv.sha256",
    log:
        "logs/measure_sparse_text.log",
    benchmark:
        "results/benchmarks/measure_sparse_text.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 2
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        dataset=config["analyses"]["dataset"],
        most=config["analyses"]["images"],
        confidence=config["analyses"]["confidence"],
        atoms=config["analyses"]["atoms"],
        control_units=config["analyses"]["control_units"],
        draws=config["analyses"]["draws"],
        seed=config["seed"],
        code=code("measure_sparse_text"),
    shell:
        """
        nadpipe measure-sparse-text \
            --images {input.images:q} --contributions {input.contributions:q} --labels {input.labels:q} \
            --pair-directions {input.pairs:q} --neuron-directions {input.neurons:q} --head-directions {input.heads:q} \
            --pair-assignments {input.pair_texts:q} --neuron-assignments {input.neuron_texts:q} --head-assignments {input.head_texts:q} \
            --dictionary {input.dictionary:q} \
            --readout {input.readout:q} --output {output.table:q} \
            --dataset {params.dataset} --most {params.most} --confidence {params.confidence} --atoms {params.atoms} \
            --control-units {params.control_units} --draws {params.draws} --seed {params.seed} \
            2>{log}
        """


rule measure_ledger:
    input:
        means=shards("discovery", "head_means"),
    output:
        table=final("results/ledger.csv"),
        checksum="results/ledger.csv.sha256",
    log:
        "logs/measure_ledger.log",
    benchmark:
        "results/benchmarks/measure_ledger.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        code=code("measure_ledger"),
    shell:
        """
        nadpipe measure-ledger \
            --means {input.means:q} --output {output.table:q} \
            2>{log}
        """


rule measure_polysemanticity:
    input:
        contributions=shards("discovery", "contributions"),
        pair_directions="results/artifacts/directions/pair.zarr",
        neuron_directions="results/artifacts/directions/neuron.zarr",
        pairs="results/pairs.parquet",
        neurons="results/neurons.parquet",
        readout="results/artifacts/model/readout.zarr",
    output:
        table="results/polysemanticity.parquet",
    log:
        "logs/measure_polysemanticity.log",
    benchmark:
        "results/benchmarks/measure_polysemanticity.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 2
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        top=config["analyses"]["top"],
        code=code("measure_polysemanticity"),
    shell:
        """
        nadpipe measure-polysemanticity \
            --contributions {input.contributions:q} --pair-directions {input.pair_directions:q} \
            --neuron-directions {input.neuron_directions:q} --pairs {input.pairs:q} --neurons {input.neurons:q} \
            --readout {input.readout:q} --output {output.table:q} --top {params.top} \
            2>{log}
        """


rule draw_retrieval:
    input:
        images="results/artifacts/discovery/images.parquet",
        source=copied_images("discovery"),
        polysemanticity="results/polysemanticity.parquet",
    output:
        sheets=report(
            directory("results/retrieval"),
            caption="captions/retrieval.rst",
            category="Analyses",
            patterns=["{name}.png"],
            subcategory="Retrieval",
        ),
    log:
        "logs/draw_retrieval.log",
    benchmark:
        "results/benchmarks/draw_retrieval.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=60,
    params:
        copied=copy_options("discovery"),
        neurons=config["analyses"]["sheets"],
        code=code("draw_retrieval"),
    shell:
        """
        nadpipe draw-retrieval \
            --images {input.images:q} {params.copied:q} --polysemanticity {input.polysemanticity:q} \
            --output {output.sheets:q} --neurons {params.neurons} \
            2>{log}
        """


rule measure_naming:
    input:
        images=of_analyses("results/artifacts/{dataset}/images.parquet"),
        contributions=shards(config["analyses"]["dataset"], "contributions"),
        discovery=shards("discovery", "contributions"),
        directions="results/artifacts/directions/pair.zarr",
        assignments="results/assignments.parquet",
        correlated="results/artifacts/assignments/correlated.parquet",
        dictionary="results/artifacts/text/dictionary.zarr",
        readout="results/artifacts/model/readout.zarr",
    output:
        table=final("results/naming.csv"),
        checksum="results/naming.csv.sha256",
    log:
        "logs/measure_naming.log",
    benchmark:
        "results/benchmarks/measure_naming.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 2
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        dataset=config["analyses"]["dataset"],
        confidence=config["analyses"]["confidence"],
        seed=config["seed"],
        code=code("measure_naming"),
    shell:
        """
        nadpipe measure-naming \
            --images {input.images:q} --contributions {input.contributions:q} --discovery {input.discovery:q} \
            --directions {input.directions:q} --assignments {input.assignments:q} --correlated {input.correlated:q} \
            --dictionary {input.dictionary:q} --readout {input.readout:q} --output {output.table:q} \
            --dataset {params.dataset} --confidence {params.confidence} --seed {params.seed} \
            2>{log}
        """


rule measure_faithfulness:
    input:
        images=of_analyses("results/artifacts/{dataset}/images.parquet"),
        contributions=shards(config["analyses"]["dataset"], "contributions"),
        discovery=shards("discovery", "contributions"),
        selection="results/artifacts/selection/concepts.zarr",
        dictionary="results/artifacts/text/dictionary.zarr",
        directions="results/artifacts/directions/pair.zarr",
        readout="results/artifacts/model/readout.zarr",
    output:
        table=final("results/faithfulness.csv"),
        checksum="results/faithfulness.csv.sha256",
    log:
        "logs/measure_faithfulness.log",
    benchmark:
        "results/benchmarks/measure_faithfulness.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 2
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        dataset=config["analyses"]["dataset"],
        shares=config["analyses"]["ablate"],
        draws=config["analyses"]["draws"],
        seed=config["seed"],
        code=code("measure_faithfulness"),
    shell:
        """
        nadpipe measure-faithfulness \
            --images {input.images:q} --contributions {input.contributions:q} --discovery {input.discovery:q} \
            --selection {input.selection:q} --dictionary {input.dictionary:q} --directions {input.directions:q} \
            --readout {input.readout:q} --output {output.table:q} \
            --dataset {params.dataset} --shares {params.shares} --draws {params.draws} --seed {params.seed} \
            2>{log}
        """
