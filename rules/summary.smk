rule describe_results:
    input:
        tables=FINAL_TABLES,
        images=expand(
            "results/artifacts/{dataset}/images.parquet", dataset=used_datasets()
        ),
        attnpool="results/artifacts/model/attnpool.zarr",
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
        config=json.dumps(settings_of_results(), ensure_ascii=False),
        code=code("describe_results"),
    shell:
        """
        nadpipe describe-results \
            --tables {input.tables:q} --images {input.images:q} --attnpool-store {input.attnpool:q} \
            --config {params.config:q} --output {output.provenance:q} \
            2>{log}
        """
