"""Compare the config with the data sets on disk before the first job.

The Snakefile does this at every start, so this module imports nothing heavy and opens no image.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nadpipe.config import DEMO_FOLDER, Analyses, Segmentation
from nadpipe.data.classes import parse_names, read_class_file
from nadpipe.data.dictionaries import is_named, read_dictionary
from nadpipe.data.layouts import LAYOUTS, SOURCE_KEYS, Source
from nadpipe.data.listing import binary_columns, column_names
from nadpipe.errors import NadpipeError

_LISTED = 10  # largest number of groups in a message
FEWEST_IMAGES = 4  # for discovery: pairs are compared by their top images, at most half of all


def check_images(config: Mapping[str, Any], source: str = "config") -> None:
    """Raise NadpipeError with one line per setting that the files of a data set do not allow.

    config: a complete config. source: start of every line, as in `nadpipe.config.check`. Data sets at a URL are not looked at.
    """
    lines: list[str] = []
    counts: dict[str, int] = {}
    for name in config["datasets"]:
        try:
            count = _count_images(config, name)
        except NadpipeError as error:
            lines.append(f"datasets.{name}: {error}")
        else:
            counts |= {} if count is None else {name: count}
    lines += _excesses(config, counts)
    if not lines:
        lines += [*_shift_errors(config), *_background_errors(config), *_dictionary_errors(config)]
    if lines:
        raise NadpipeError("\n".join(f"{source}: {line}" for line in lines))


def dataset_source(dataset: Mapping[str, Any]) -> Source:
    """Return the source that a data set's section of the config describes."""
    return Source(Path(dataset["path"]), **{key: dataset[key] for key in SOURCE_KEYS})


def is_looked_at(path: str) -> bool:
    """Return True for a path on disk that the workflow does not make itself."""
    return "://" not in path and not Path(path).is_relative_to(DEMO_FOLDER)


def _count_images(config: Mapping[str, Any], name: str) -> int | None:
    """Return the number of images that a data set lists, or None if only a job can tell."""
    dataset, demo = config["datasets"][name], config["demo"]
    if is_looked_at(dataset["path"]):
        return LAYOUTS[dataset["layout"]].count_images(dataset_source(dataset))
    drawn = {
        "discovery.csv": demo["discovery_images"],
        "segmentation.csv": demo["segmentation_images"],
    }
    return drawn.get(Path(dataset["path"]).name) if "://" not in dataset["path"] else None


def _excesses(config: Mapping[str, Any], counts: Mapping[str, int]) -> Iterator[str]:
    """Yield one line per number in the config that exceeds the images of a data set. counts: images of the known data sets."""
    for name, count in counts.items():
        path = config["datasets"][name]["path"]
        if count == 0:
            yield f"datasets.{name}.path: {path} lists no images; correct the path"
        elif name == "discovery" and count < FEWEST_IMAGES:
            yield f"datasets.{name}.path: {path} lists {_images(count)}; give at least {FEWEST_IMAGES}"
        elif config["datasets"][name]["shards"] > count:
            shards = config["datasets"][name]["shards"]
            yield f"datasets.{name}.shards: {shards} exceeds the {_images(count)} of {path}; use at most one shard per image"
    discovery = counts.get("discovery", 0)
    top_images, top = config["directions"]["top_images"], config["analyses"]["top"]
    if discovery and top_images is not None and top_images > discovery:
        yield f"directions.top_images: {top_images} exceeds the {_images(discovery)} of datasets.discovery; lower it"
    # The defaults below are lowered by their stages, so that small data sets need no settings.
    if discovery >= FEWEST_IMAGES and top > discovery // 2 and top != Analyses.model_fields["top"].default:
        yield f"analyses.top: {top} exceeds half of the {_images(discovery)} of datasets.discovery; lower it"
    largest = max((counts[name] for name in config["segmentation"]["datasets"] if name in counts), default=0)
    for key in ("overlays", "extremes"):
        drawn = config["segmentation"][key]
        if largest and drawn > largest and drawn != Segmentation.model_fields[key].default:
            yield f"segmentation.{key}: {drawn} exceeds the {_images(largest)} of the largest segmented data set; lower it"


def _shift_errors(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for an unknown reference group, and for each column that cannot be the label of its concept."""
    dataset, reference = config["datasets"].get("monitoring"), config["shift"]["reference"]
    if dataset is None or not is_looked_at(dataset["path"]):
        return
    source, layout = dataset_source(dataset), LAYOUTS[dataset["layout"]]
    groups = (layout.group_names(source) or set()) - {""}
    if groups and reference is not None and reference not in groups and not reference.startswith("rolling:"):
        listed = sorted(groups)
        some = ", ".join(listed[:_LISTED]) + (", …" if len(listed) > _LISTED else "")
        yield f"shift.reference: datasets.monitoring has no group {reference!r}; choose one of {some}"
    if layout.is_file and config["shift"]["concepts"]:
        binary = binary_columns(source.path)
        for concept in config["shift"]["concepts"]:
            if concept in column_names(source.path) and concept not in binary:
                yield (
                    f"shift.concepts: column {concept} of {source.path} is the label of the concept {concept}, but holds other "
                    "values than 0 and 1; rename it"
                )


def _background_errors(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for each segmented data set with a threshold for background but without a class of this name."""
    for name in config["segmentation"]["datasets"]:
        dataset = config["datasets"][name]
        if dataset["background_threshold"] == 0:
            continue
        try:
            titles = _class_titles(dataset)
        except NadpipeError as error:
            yield f"datasets.{name}.classes: {error}"
            continue
        if titles is not None and "background" not in titles:
            yield f"datasets.{name}.background_threshold: no class is called background; name one background, or set 0"


def _class_titles(dataset: Mapping[str, Any]) -> Sequence[str] | None:
    """Return the titles of a data set's classes, or None if only a job can read them."""
    classes, layout = dataset["classes"], LAYOUTS[dataset["layout"]]
    if isinstance(classes, list) and not layout.has_fixed_values:
        return [parse_names(names)[0] for names in classes]
    if isinstance(classes, str) and not layout.has_fixed_values:
        return read_class_file(Path(classes)).titles if is_looked_at(classes) else None
    return layout.find_classes(dataset_source(dataset)).titles if is_looked_at(dataset["path"]) else None


def _dictionary_errors(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for a dictionary file that cannot be read or is empty."""
    dictionary = config["text"]["dictionary"]
    if is_named(dictionary) or not is_looked_at(dictionary):
        return
    try:
        read_dictionary(dictionary)
    except NadpipeError as error:
        yield f"text.dictionary: {error}"


def _images(count: int) -> str:
    return f"{count:,} {'image' if count == 1 else 'images'}"
