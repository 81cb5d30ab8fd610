# Only the result of this rule can be shared between workflows (--cache), because the rule reads only its inputs. Other rules
# read images, of which only the manifest is an input. Texts have their own cache (text.cache). A shared rule has no benchmark.
rule export_readout:
    input:
        files=lambda wildcards: model_files(),
    output:
        readout=directory("results/artifacts/model/readout.zarr"),
    log:
        "logs/export_readout.log",
    cache: True
    conda:
        "../envs/nadpipe.yaml"
    threads: 1
    resources:
        mem_mb=memory(8000),
        runtime=20,
    params:
        model=lambda wildcards: model_options(),
        block=block_options(),
        code=code("export_readout"),
    shell:
        """
        nadpipe export-readout \
            {params.model:q} {params.block:q} --output {output.readout:q} \
            2>{log}
        """
