# Functions of rules/segmentation.smk.


def segmented_shards(pattern, datasets):
    """Return one path per shard of the data sets."""
    return [
        pattern.format(dataset=dataset, shard=shard)
        for dataset in datasets
        for shard in shard_numbers(dataset)
    ]


def with_masks():
    """Return the segmented data sets that have masks, and so scores."""
    return [name for name in config["segmentation"]["datasets"] if name not in UNMASKED]


def labelling_options(dataset):
    """Return the options that turn the logits of a data set's texts into classes."""
    source = config["datasets"][dataset]
    return [
        flag("background-names", source["background_names"]),
        *("--background-threshold", source["background_threshold"]),
        *("--area-threshold", source["area_threshold"]),
    ]


def checked_masks(dataset):
    """Return the table of a data set's masks, if it has masks. Segmentation requires it, so that all masks are checked first."""
    source = config["datasets"][dataset]
    if LAYOUTS[source["layout"]].lacks("masks", source):
        return []
    return [f"results/artifacts/{dataset}/masks.parquet"]
