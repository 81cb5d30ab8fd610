"""The one contract for the config: keys, types, bounds, and no unknown keys.

config.yaml at the root explains each key. `check` runs before the first job; what it returns is complete, so that rules
read keys and never fall back on a default.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from nadpipe.classes import parse_names
from nadpipe.dictionaries import check_templates, is_named
from nadpipe.errors import NadpipeError

MADE_HERE = Path("results/demo")  # the workflow itself makes these
_MADE = {MADE_HERE / name for name in ("model.json", "model.safetensors", "dictionary.txt")}
_MADE |= {MADE_HERE / f"{name}{end}" for name in ("discovery", "segmentation", "monitoring") for end in ("", ".csv")}


def is_url(path: str) -> bool:
    """Whether a path names something on another machine, such as s3://bucket/photos."""
    return re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def _tidy(url: str) -> str:
    """A URL without slashes that do not count."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{re.sub('/+', '/', rest).rstrip('/')}"


def image_folder(layout: str, path: str) -> str:
    """The folder that the images of a data set lie in: of a table, the one that it lies in."""
    return path.rpartition("/")[0] if layout == "table" else path


def _exists(path: str) -> str:
    if is_url(path):
        return _tidy(path)
    if not Path(path).exists() and Path(path) not in _MADE:
        raise ValueError(f"no such file or folder: {path}")
    return path


def _distinct(values: list) -> list:
    twice = {value for value in values if values.count(value) > 1}
    if twice:
        raise ValueError(f"listed twice: {', '.join(map(str, sorted(twice)))}")
    return values


def _dictionary(name: str) -> str:
    try:
        return name if is_named(name) else _exists(name)
    except NadpipeError as error:
        raise ValueError(str(error)) from None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _null(value: Any) -> Any:
    return None if value == "null" else value  # snakemake --config passes it as text


def _templates(templates: list[str]) -> list[str]:
    try:
        return check_templates(templates)
    except NadpipeError as error:
        raise ValueError(str(error)) from None


def _one_line(text: str) -> str:
    if not text.strip() or "\n" in text:
        raise ValueError("one line of text, not empty")
    return text


def _architecture(name: str) -> str:
    return _exists(name) if name.endswith(".json") else name


def _checkpoint(name: str) -> str:
    return _exists(name) if "/" in name or Path(name).suffix in (".safetensors", ".pt", ".pth", ".bin") else name


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"input should be a valid number, not {value}")
    return value


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"auto, cpu, mps, cuda or cuda:<number>, not {name!r}")
    return name


def _sink(value: Any) -> Any:
    if value in ("auto", "none"):
        return value
    if re.fullmatch(r"\d+", str(value)):
        return int(value)
    raise ValueError(f"auto, none or the index of a spatial token from 0, not {value!r}")


def _class_names(given: list[str]) -> list[str]:
    try:
        for names in given:
            parse_names(names)
    except NadpipeError as error:
        raise ValueError(str(error)) from None
    return given


def _reference(group: str) -> str:
    if group.startswith("rolling:") and not re.fullmatch(r"rolling:[1-9]\d*", group):
        raise ValueError(f"write rolling:<n> with the number of groups, such as rolling:3, not {group!r}")
    return group


def _several(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _dataset_name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in _RESERVED:
        raise ValueError(f"small letters, digits and _, and none of {', '.join(sorted(_RESERVED))}, not {name!r}")
    return name


Whole = Annotated[int, BeforeValidator(_no_boolean)]  # numbers as text are taken: snakemake --config passes them so
Count = Annotated[Whole, Field(ge=1)]
Number = Annotated[float, BeforeValidator(_no_boolean), Field(allow_inf_nan=False)]
Share = Annotated[Number, Field(gt=0, le=1)]
Resamples = Annotated[Whole, Field(ge=100)]
Confidence = Annotated[Number, Field(gt=0.5, lt=1)]
ExistingPath = Annotated[str, AfterValidator(_exists)]
Text = Annotated[str, AfterValidator(_one_line)]
Texts = Annotated[list[Text], Field(min_length=1), AfterValidator(_distinct)]
ClassNames = Annotated[list[Text], Field(min_length=2, max_length=256), AfterValidator(_distinct), AfterValidator(_class_names)]
_FILE, _NAMES = "class file", "class names"  # of the union below; pydantic puts them into the path of a fault
Classes = Annotated[
    Annotated[ExistingPath, Tag(_FILE)] | Annotated[ClassNames, Tag(_NAMES)],
    Discriminator(lambda given: _FILE if isinstance(given, str) else _NAMES),
]
Method = Literal["nad", "nad_centred", "nad_shifted", "heads", "neurons", "maskclip", "sclip", "attention"]
Layout = Literal[
    "table",
    "tree",
    "stanford_cars",
    "folder",
    "voc20",
    "voc21",
    "context59",
    "context60",
    "ade20k",
    "coco_stuff164k",
    "coco_object",
    "cityscapes",
]
_RESERVED = {"dictionary", "concepts", "labels", "cache", "model", "text", "directions", "selection", "assignments"}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelSection(_Section):
    """Which model, and its weights."""

    architecture: Annotated[str, AfterValidator(_architecture)]
    pretrained: Annotated[str, AfterValidator(_checkpoint)] | None


class Dataset(_Section):
    """Where images come from, and what their masks mean. The only section with defaults: a data set names what it needs."""

    layout: Layout
    path: ExistingPath
    split: str | None = None
    path_column: str = "path"
    mask_column: str | None = None
    group_column: str | None = None
    label_column: str | None = None
    labels: ExistingPath | None = None
    bad_images: Literal["fail", "skip"] = "fail"
    shards: Count = 1
    classes: Classes | None = None
    reduce_zero_label: bool = False
    ignore: Annotated[Whole, Field(ge=0, le=65535)] = 255
    background_names: bool = True
    background_threshold: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    area_threshold: Annotated[Number, Field(ge=0, lt=1)] = 0.0


Datasets = dict[Annotated[str, AfterValidator(_dataset_name)], Dataset]


class Demo(_Section):
    """Sizes of the demo's data sets."""

    discovery_images: Count
    segmentation_images: Count
    monitoring_images_per_year: Count


class Features(_Section):
    """Running the image tower."""

    batch_size: Count
    workers: Annotated[Whole, Field(ge=0)]
    precision: Literal["float32", "bfloat16"]
    dtype: Literal["float32", "float16"]


class Contributions(_Section):
    """Taking the attention pool apart."""

    batch_size: Count
    dtype: Literal["float32", "float16"]
    tolerance: Annotated[Number, Field(gt=0, le=0.1)]


class Dense(_Section):
    """The dense tensor, for those who want it."""

    datasets: Annotated[list[str], AfterValidator(_distinct)]
    dtype: Literal["float32", "float16"]


class Directions(_Section):
    """Fitting directions."""

    top_images: Count
    components: Count


class TextSection(_Section):
    """Texts and how they are embedded."""

    dictionary: Annotated[str, AfterValidator(_dictionary)]
    templates: Annotated[Texts, BeforeValidator(_as_list), AfterValidator(_templates)]  # a set's name may stand alone
    batch_size: Count
    cache: Annotated[Annotated[str, Field(min_length=1)] | None, BeforeValidator(_null)]


class Assignments(_Section):
    """Naming units with texts."""

    nearest: Count
    atoms: Count
    sparse_share: Share
    device: Annotated[str, AfterValidator(_device)]


class Segmentation(_Section):
    """Training-free segmentation."""

    datasets: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]
    methods: Annotated[list[Method], Field(min_length=1), AfterValidator(_distinct)]
    k: Annotated[list[Count], Field(min_length=1), BeforeValidator(_several), AfterValidator(_distinct)]
    select_by: Literal["direction", "write"]
    scale: Annotated[Number, Field(ge=1)]
    crop: Annotated[Number, Field(gt=0)]
    stride: Share
    block: Annotated[Annotated[Whole, Field(ge=0)] | None, BeforeValidator(_null)]
    temperature: Annotated[Number, Field(gt=0)]
    sink: Annotated[Any, AfterValidator(_sink)]
    overlays: Count
    extremes: Count
    resamples: Resamples
    confidence: Confidence


class Registers(_Section):
    """Measuring attention sinks and the neurons behind them."""

    images: Count
    sink_factor: Annotated[Number, Field(gt=1)]


class Shift(_Section):
    """Monitoring concepts over groups."""

    concepts: Texts
    k: Count
    select_by: Literal["direction", "write"]
    reference: Annotated[str, AfterValidator(_reference)] | None
    test: Literal["mann_whitney", "welch", "ks"]
    small_group: Count
    examples: Count
    resamples: Resamples
    confidence: Confidence


class Analyses(_Section):
    """What the pairs carry, and whether their names are true."""

    dataset: str
    images: Count
    shares: Annotated[list[Share], Field(min_length=1), AfterValidator(_distinct)]
    draws: Count
    atoms: Annotated[list[Count], Field(min_length=1), AfterValidator(_distinct)]
    top: Annotated[Whole, Field(ge=2)]
    sheets: Count
    confidence: Confidence


class Explorer(_Section):
    """The pages over all pairs."""

    images: Count
    thumbnail: Annotated[Whole, Field(ge=16)]


class Config(_Section):
    """The whole config."""

    seed: Annotated[Whole, Field(ge=0)]
    device: Annotated[str, AfterValidator(_device)]
    model: ModelSection
    datasets: Datasets
    demo: Demo
    features: Features
    contributions: Contributions
    dense: Dense
    directions: Directions
    text: TextSection
    assignments: Assignments
    registers: Registers
    segmentation: Segmentation
    shift: Shift
    explorer: Explorer
    analyses: Analyses

    @model_validator(mode="after")
    def _named_datasets(self) -> "Config":
        wanted = {"datasets": ["discovery", "monitoring"], "dense.datasets": self.dense.datasets}
        wanted |= {"segmentation.datasets": self.segmentation.datasets, "analyses.dataset": [self.analyses.dataset]}
        for key, names in wanted.items():
            missing = [name for name in names if name not in self.datasets]
            if missing:
                raise ValueError(f"{key}: no data set {missing[0]}; datasets has {', '.join(self.datasets)}")
        for name in self.segmentation.datasets:
            given = self.datasets[name]
            if name in ("discovery", "monitoring"):
                raise ValueError(
                    f"segmentation.datasets: {name} is looked at by single crops; list its images under another name"
                )
            if given.layout in ("table", "tree", "stanford_cars") and given.classes is None:
                raise ValueError(f"datasets.{name}.classes: missing; a {given.layout} has none of its own")
        if self.segmentation.crop > self.segmentation.scale:
            raise ValueError(
                f"segmentation.crop: at most segmentation.scale, {self.segmentation.scale}: crops must fit in the image"
            )
        return self

    @model_validator(mode="after")
    def _urls_apart(self) -> "Config":
        """A folder is fetched whole: what lies in it and is fetched by itself would be taken for the folder."""
        paths = {f"model.{name}": getattr(self.model, name) for name in ("architecture", "pretrained")}
        paths["text.dictionary"] = self.text.dictionary
        folders = {}
        for name, given in self.datasets.items():
            paths |= {f"datasets.{name}.{key}": getattr(given, key) for key in ("labels", "classes")}
            if is_url(given.path):
                folders[f"datasets.{name}.path"] = image_folder(given.layout, given.path)
        paths = folders | {key: path for key, path in paths.items() if isinstance(path, str) and is_url(path)}
        for key, folder in folders.items():
            if folder.count("/") < 3:
                raise ValueError(f"{key}: images must be in a folder of {folder}, which is fetched whole")
            inside = [other for other, path in paths.items() if path.startswith(f"{folder}/")]
            if inside:
                raise ValueError(f"{inside[0]}: {paths[inside[0]]} is in {folder}, which {key} fetches whole; keep them apart")
        return self


def check(config: dict[str, Any], source: str = "config") -> dict[str, Any]:
    """The validated config as plain values. Raises NadpipeError with one line a fault: the key's full path, what is wrong,
    and what is allowed; all faults at once."""
    try:
        return Config.model_validate(config).model_dump()
    except ValidationError as error:
        lines = dict.fromkeys(_explain(fault) for fault in error.errors())
        raise NadpipeError("\n".join(f"{source}: {line}" for line in lines)) from None


def _explain(fault: dict[str, Any]) -> str:
    """One line for one fault of pydantic."""
    path = [part for part in fault["loc"] if not _is_choice(part)]
    key = ".".join(map(str, path if path[-1:] != ["[key]"] else path[:-1]))
    kind, message = fault["type"], fault["msg"]
    if kind == "extra_forbidden":
        return f"{key}: unknown key; allowed here: {', '.join(_keys(path[:-1]))}"
    if kind == "missing":
        return f"{key}: missing; add it (docs/configuration.md shows every key)"
    if kind == "value_error":
        message = str(fault["ctx"]["error"])
        if not path:
            return message  # of several keys, which it names itself
    return f"{key}: {message[0].lower()}{message[1:]}, not {fault['input']!r}" if kind != "value_error" else f"{key}: {message}"


def _is_choice(part: Any) -> bool:
    """Pydantic adds the member of a union to the path of a fault; the user's key has no such part."""
    return part in ("int", "str", _FILE, _NAMES) or str(part).startswith(("literal[", "constrained-", "function-"))


def _keys(path: list[Any]) -> list[str]:
    """Names of the keys of the section at a path."""
    section: Any = Config
    for part in path:
        if section == Datasets:
            section = Dataset  # whatever its name
        else:
            section = section.model_fields[part].annotation
    return list(section.model_fields)
