# Functions of rules/segmentation.smk.


def segmented_shards(pattern, datasets):
    """Return a path per shard of the segmented data sets."""
    return [
        pattern.format(dataset=dataset, shard=shard)
        for dataset in datasets
        for shard in shard_numbers(dataset)
    ]


def labelling_options(dataset):
    """Return the options that turn the logits of a data set's texts into classes."""
    known = config["datasets"][dataset]
    return [
        flag("background-names", known["background_names"]),
        *("--background-threshold", known["background_threshold"]),
        *("--area-threshold", known["area_threshold"]),
    ]
