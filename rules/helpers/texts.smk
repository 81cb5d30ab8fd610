# Functions of rules/texts.smk.


def text_options(name):
    """Return the options that define the texts of a set."""
    if name == "dictionary":
        dictionary = config["text"]["dictionary"]
        is_file = not is_named(dictionary)
        return settings(dictionary=found_at(dictionary) if is_file else dictionary)
    if name == "concepts":
        return settings(texts=config["shift"]["concepts"])
    if name == "labels":
        return ["--labels"]
    background = config["datasets"][name]["background_names"]
    return [flag("background-names", background), "--classes"]


def text_files(name):
    """Return the file from which the texts of a set are read, if there is one."""
    if name == "dictionary":
        dictionary = config["text"]["dictionary"]
        return [] if is_named(dictionary) else [given(dictionary)]
    return []


def text_tables(name):
    """Return the generated table from which the texts of a set are read, if there is one. It follows `text_options`."""
    if name == "labels":
        return [of_analyses("results/artifacts/{dataset}/images.parquet")]
    without = ("dictionary", "concepts")
    return [] if name in without else [f"results/artifacts/{name}/classes.parquet"]


def cache_option():
    """Return the option for the text cache, quoted for the shell because a resource is one string, not a list."""
    cache = config["text"]["cache"]
    if cache is not None and Path(cache).is_relative_to("results"):
        cache = f"{PREFIX}{cache}"
    return shlex.join(settings(cache=cache))


def selection_section(name):
    """Return the section of the config that sets the pair selection for a set of texts."""
    return config["shift" if name == "concepts" else "segmentation"]


def selected_k(name):
    """Return the largest number of pairs per text. The smaller numbers of a sweep use the first of these pairs."""
    k = selection_section(name)["k"]
    return max(k) if isinstance(k, list) else k


def reference_texts(name):
    """Return the texts whose mean centres a set: the set itself, or for concepts, which are few, the dictionary or none."""
    if name == "concepts":
        centre = config["shift"]["centre"]
        return [] if centre == "none" else [f"results/artifacts/text/{centre}.zarr"]
    return [f"results/artifacts/text/{name}.zarr"]


def centring_options(paths):
    """Return the option for the texts whose mean centres a set, if there are any."""
    return ["--reference", *paths] if paths else []
