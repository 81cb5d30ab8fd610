rule plot_table:
    input:
        table=lambda wildcards: PLOTTED[wildcards.name],
        checksum=lambda wildcards: checksums([PLOTTED[wildcards.name]]),
    output:
        plot=report(
            "results/{name}.png",
            caption="captions/final.rst",
            category=lambda wildcards: FINAL[PLOTTED[wildcards.name]].category,
        ),
    log:
        "logs/plot_table/{name}.log",
    benchmark:
        "results/benchmarks/plot_table/{name}.tsv"
    wildcard_constraints:
        name="|".join(PLOTTED),
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        code=code("plot_table"),
        # the stage imports figures by name, so a new figure does not redraw the others
        figure=lambda wildcards: code_fingerprint(
            f"nadpipe.pages.figures.{wildcards.name}"
        ),
    shell:
        """
        nadpipe plot-table \
            --name {wildcards.name} --table {input.table:q} --output {output.plot:q} \
            2>{log}
        """


rule plot_classes:
    input:
        classes="results/segmentation/per_class.parquet",
    output:
        plot=report(
            "results/segmentation/{dataset}/per_class.png",
            caption="captions/per_class.rst",
            category="Segmentation",
        ),
    log:
        "logs/plot_classes/{dataset}.log",
    benchmark:
        "results/benchmarks/plot_classes/{dataset}.tsv"
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        code=code("plot_classes"),
    shell:
        """
        nadpipe plot-classes \
            --classes {input.classes:q} --dataset {wildcards.dataset} --output {output.plot:q} \
            2>{log}
        """
