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
        checkpoint=lambda wildcards: local(os.path.relpath(CHECKPOINT)),  # relative, so moving the folder reruns nothing
    output:
        weights="results/demo/model.safetensors",
        config="results/demo/model.json",
        dictionary="results/demo/dictionary.txt",
    log:
        "logs/make_demo_model.log",
    benchmark:
        "results/benchmarks/make_demo_model.tsv"
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
            --output-config {output.config:q} --output-dictionary {output.dictionary:q} \
            2>{log}
        """
