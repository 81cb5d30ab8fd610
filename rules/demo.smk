include: "helpers/demo.smk"


rule make_demo_data:
    output:
        folder=directory("results/demo/{name}"),
        table="results/demo/{name}.csv",
    log:
        "logs/make_demo_data/{name}.log",
    benchmark:
        "results/benchmarks/make_demo_data/{name}.tsv"
    wildcard_constraints:
        name="discovery|segmentation|monitoring",
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=20,
    params:
        images=lambda wildcards: demo_images(wildcards.name),
        seed=config["seed"],
        code=code("make_demo_data"),
    shell:
        """
        nadpipe make-demo-data \
            --name {wildcards.name} --images {params.images} --seed {params.seed} \
            --output-folder {output.folder:q} --output-table {output.table:q} \
            2>{log}
        """


rule make_demo_model:
    input:
        checkpoint=lambda wildcards: packaged_checkpoint(wildcards.model),
    output:
        weights="results/demo/{model}.safetensors",
        config="results/demo/{model}.json",
    log:
        "logs/make_demo_model/{model}.log",
    benchmark:
        "results/benchmarks/make_demo_model/{model}.tsv"
    wildcard_constraints:
        model="model|vit",
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        code=code("make_demo_model"),
    shell:
        """
        nadpipe make-demo-model \
            --checkpoint {input.checkpoint:q} --output-weights {output.weights:q} \
            --output-config {output.config:q} \
            2>{log}
        """


rule make_demo_dictionary:
    output:
        dictionary="results/demo/dictionary.txt",
    log:
        "logs/make_demo_dictionary.log",
    benchmark:
        "results/benchmarks/make_demo_dictionary.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        code=code("make_demo_dictionary"),
    shell:
        """
        nadpipe make-demo-dictionary --output {output.dictionary:q} 2>{log}
        """
