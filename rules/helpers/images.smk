# Functions of rules/images.smk.


def source_options(dataset):
    """Return the options that describe the source of a data set's images."""
    source = dict(config["datasets"][dataset])
    source["path"] = source_path(dataset)
    source["labels"] = source["labels"] and found_at(source["labels"])
    names = (
        "layout",
        "path",
        "split",
        "path_column",
        "mask_column",
        "group_column",
        "label_column",
        "labels",
        "bad_images",
    )
    return settings(**{name: source[name] for name in names}) + copy_options(dataset)


def source_files(dataset):
    """Return the table or folder of a data set. Demo tables include their folder of drawn images. For a table at a URL, return
    its folder."""
    path = config["datasets"][dataset]["path"]
    if is_url(path):
        return [given(source_root(dataset))]
    drawn = Path(path).is_relative_to(DEMO_FOLDER)
    return [given(path)] + ([str(Path(path).with_suffix(""))] if drawn else [])


def listed_files(dataset):
    """Return a fingerprint of the files of a data set, because Snakemake sees neither files in the folders below a folder nor
    those that a table names. Generated files and URLs are not looked at."""
    source = config["datasets"][dataset]
    if not is_looked_at(source["path"]):
        return None
    return LAYOUTS[source["layout"]].fingerprint(dataset_source(source))


def label_files(dataset):
    """Return the label table of a data set, if it has one."""
    labels = config["datasets"][dataset]["labels"]
    return [given(labels)] if labels else []


def class_options(dataset):
    """Return the options that define the classes of a data set."""
    source = config["datasets"][dataset]
    is_file = isinstance(source["classes"], str)
    return settings(
        layout=source["layout"],
        path=source_path(dataset),
        split=source["split"],
        class_file=found_at(source["classes"]) if is_file else None,
        classes=None if is_file else source["classes"],
        reduce_zero=source["reduce_zero_label"],
        ignore=source["ignore"],
    )


def class_files(dataset):
    """Return the files that define the classes of a data set: the config's class file, the layout's files, and the staged copy."""
    source = config["datasets"][dataset]
    classes = source["classes"]
    inputs = [given(classes)] if isinstance(classes, str) else []
    layout = LAYOUTS[source["layout"]]
    if layout.has_classes:
        files = layout.class_files(Path(source["path"]))
        inputs += [local(str(path)) for path in files] + copied_images(dataset)
    return inputs


def view_options(dataset):
    """Return the options for the views of a data set: sliding crops for segmentation, the model's own crop otherwise."""
    section = config["segmentation"]
    if dataset not in section["datasets"]:
        return ["--views", "centre"]
    names = ("scale", "crop", "stride", "resize")
    options = [word for name in names for word in (f"--{name}", section[name])]
    block = [] if section["block"] is None else ["--shown-block", section["block"]]
    return ["--views", "sliding", *options, *block]


def layout_code(dataset):
    """Return the fingerprint of a data set's layout, so that another layout's record reruns nothing."""
    return record_fingerprint(LAYOUTS[config["datasets"][dataset]["layout"]])
