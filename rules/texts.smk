def text_options(name):
    """Return the options that give the texts of a set."""
    if name == "dictionary":
        dictionary = config["text"]["dictionary"]
        named = is_named(dictionary)
        return ["--dictionary", dictionary if named else found_at(dictionary)]
    if name == "concepts":
        return ["--texts", *config["shift"]["concepts"]]
    if name == "labels":
        return ["--labels"]
    background = config["datasets"][name]["background_names"]
    return [flag("background-names", background), "--classes"]


def text_files(name):
    """Return the file that the texts of a set are read from, if there is one."""
    if name == "dictionary":
        dictionary = config["text"]["dictionary"]
        return [] if is_named(dictionary) else [given(dictionary)]
    return []


def text_tables(name):
    """Return the generated table that the texts of a set are read from, if there is one. It follows the options."""
    if name == "labels":
        return [of_analyses("results/artifacts/{dataset}/images.parquet")]
    made = ("dictionary", "concepts")
    return [] if name in made else [f"results/artifacts/{name}/classes.parquet"]


def cache_option():
    """Return the option that names the text cache, quoted for the shell because a resource is one string, not a list."""
    cache = config["text"]["cache"]
    return "" if cache is None else f"--cache {shlex.quote(cache)}"


def selection_section(name):
    """Return the section of the config that sets the pair selection for a set of texts."""
    return config["shift" if name == "concepts" else "segmentation"]


def selected_k(name):
    """Return the largest number of pairs per text. The smaller numbers of a sweep use the first of these pairs."""
    k = selection_section(name)["k"]
    return max(k) if isinstance(k, list) else k


def reference_texts(name):
    """Return the texts whose mean centres a set: the set's own for classes, the dictionary for the few concepts."""
    return f"results/artifacts/text/{'dictionary' if name == 'concepts' else name}.zarr"


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
        cache=cache_option(),
    params:
        model=model_options(),
        texts=lambda wildcards: text_options(wildcards.set),
        templates=config["text"]["templates"],
        code=code("embed_texts"),
    shell:
        """
        nadpipe embed-texts \
            {params.model:q} --output {output.text:q} {params.texts:q} {input.tables:q} \
            --templates {params.templates:q} --batch-size {resources.batch_size} --device {resources.device:q} \
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
        code=code("select_pairs"),
    shell:
        """
        nadpipe select-pairs \
            --text {input.text:q} --reference {input.reference:q} --directions {input.directions:q} --readout {input.readout:q} \
            --output {output.selection:q} --k {params.k} --select-by {params.select_by} \
            2>{log}
        """
