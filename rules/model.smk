# The one rule that --cache may share between workflows: it reads nothing but its inputs. Images are no inputs, only their
# manifest is; texts have a cache of their own (text.cache). A rule that is shared has no benchmark.
rule export_attnpool:
    input:
        files=model_files(),
    output:
        attnpool=directory("results/artifacts/model/attnpool.zarr"),
    log:
        "logs/export_attnpool.log",
    cache: True
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(8000),
        runtime=20,
    params:
        model=model_options(),
        code=code("export_attnpool"),
    shell:
        """
        nadpipe export-attnpool \
            {params.model:q} --output {output.attnpool:q} \
            2>{log}
        """
