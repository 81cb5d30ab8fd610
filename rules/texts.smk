include: "helpers/texts.smk"


rule embed_texts:
    input:
        files=lambda wildcards: model_files() + text_files(wildcards.set),
        tables=lambda wildcards: text_tables(wildcards.set),
    output:
        text=directory("results/artifacts/text/{set}.zarr"),
    log:
        "logs/embed_texts/{set}.log",
    benchmark:
        "results/benchmarks/embed_texts/{set}.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: lambda wildcards: 2 if wildcards.set == "dictionary" else 1
    resources:
        mem_mb=memory(8000),
        runtime=60,
        gpu=1 if config["device"] != "cpu" else 0,
        device=config["device"],
        batch_size=config["text"]["batch_size"],
        cache=lambda wildcards: cache_option(),
    params:
        model=lambda wildcards: model_options(),
        texts=lambda wildcards: text_options(wildcards.set),
        templates=lambda wildcards: settings(templates=config["text"]["templates"]),
        code=code("embed_texts"),
    shell:
        """
        nadpipe embed-texts \
            {params.model:q} --output {output.text:q} {params.texts:q} {input.tables:q} \
            {params.templates:q} --batch-size {resources.batch_size} --device {resources.device:q} \
            {resources.cache} \
            2>{log}
        """


rule select_pairs:
    input:
        text="results/artifacts/text/{set}.zarr",
        reference=lambda wildcards: reference_texts(wildcards.set),
        directions="results/artifacts/directions/pair.zarr",
        readout="results/artifacts/model/readout.zarr",
    output:
        selection=directory("results/artifacts/selection/{set}.zarr"),
    log:
        "logs/select_pairs/{set}.log",
    benchmark:
        "results/benchmarks/select_pairs/{set}.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=30,
    params:
        k=lambda wildcards: selected_k(wildcards.set),
        select_by=lambda wildcards: selection_section(wildcards.set)["select_by"],
        reference=lambda wildcards, input: centring_options(input.reference),
        code=code("select_pairs"),
    shell:
        """
        nadpipe select-pairs \
            --text {input.text:q} {params.reference:q} --directions {input.directions:q} --readout {input.readout:q} \
            --output {output.selection:q} --k {params.k} --select-by {params.select_by} \
            2>{log}
        """
