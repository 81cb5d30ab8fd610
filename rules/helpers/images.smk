# Functions of rules/images.smk.


def source_options(dataset):
    """Return the options that describe the source of a data set's images."""
    known = dict(config["datasets"][dataset])
    known["path"] = source_path(dataset)
    known["labels"] = known["labels"] and found_at(known["labels"])
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
    return [
        part
        for name in names
        if known[name] is not None
        for part in (f"--{name.replace('_', '-')}", known[name])
    ] + copy_options(dataset)


def source_files(dataset):
    """Return the table or folder of a data set. Demo tables come with their folder of drawn images. For a table at a URL,
    return its folder."""
    path = config["datasets"][dataset]["path"]
    if is_url(path):
        return [given(source_root(dataset))]
    made = Path(path).is_relative_to(DEMO_FOLDER)
    return [given(path)] + ([str(Path(path).with_suffix(""))] if made else [])


def label_files(dataset):
    """Return the label table of a data set, if it has one."""
    labels = config["datasets"][dataset]["labels"]
    return [given(labels)] if labels else []


def class_options(dataset):
    """Return the options that define the classes of a data set."""
    known = config["datasets"][dataset]
    options = ["--layout", known["layout"], "--path", source_path(dataset)]
    options += ["--split", known["split"]] if known["split"] else []
    if isinstance(known["classes"], str):
        options += ["--class-file", found_at(known["classes"])]
    elif known["classes"]:
        options += ["--classes", *known["classes"]]
    options += ["--reduce-zero"] if known["reduce_zero_label"] else []
    return options + ["--ignore", known["ignore"]]


def class_files(dataset):
    """Return the files that define the classes of a data set: the class file, that of a published layout, or the staged copy
    of the data set."""
    known = config["datasets"][dataset]
    named = [given(known["classes"])] if isinstance(known["classes"], str) else []
    layout = LAYOUTS[known["layout"]]
    if layout.has_classes:
        files = layout.class_files(Path(known["path"]))
        named += [local(str(path)) for path in files] + copied_images(dataset)
    return named


def view_options(dataset):
    """Return the options for the views of a data set: sliding crops for segmentation, the model's own crop otherwise."""
    section = config["segmentation"]
    if dataset not in section["datasets"]:
        return ["--views", "centre"]
    sizes = [("--scale", "scale"), ("--crop", "crop"), ("--stride", "stride")]
    options = [part for flag, name in sizes for part in (flag, section[name])]
    block = [] if section["block"] is None else ["--block", section["block"]]
    return ["--views", "sliding", *options, *block]
