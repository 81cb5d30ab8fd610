"""Define and check the config: keys, types, bounds and paths.

The descriptions below are the source of docs/configuration.md. `check` runs before the first job. It returns a complete
config, so rules read keys and need no defaults.
"""

import dataclasses
import difflib
import importlib.util
import json
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from nadpipe.circuit.methods import METHODS
from nadpipe.config_file import MOST_VALUES, exceeds
from nadpipe.data.classes import first_repeated, parse_names
from nadpipe.data.dictionaries import TEMPLATE_SETS, check_templates, is_named
from nadpipe.data.layouts import LAYOUTS, SOURCE_KEYS
from nadpipe.data.listing import column_names
from nadpipe.data.text_files import text_problem
from nadpipe.errors import NadpipeError, printable
from nadpipe.store.files import read_regular

DEMO_FOLDER = Path("results/demo")
_DEMO_SETS = ("discovery", "segmentation", "monitoring")
# The workflow generates these paths, so they need not exist when the config is checked.
_GENERATED = {DEMO_FOLDER / f"{name}{suffix}" for name in ("model", "vit") for suffix in (".json", ".safetensors")}
_GENERATED |= {DEMO_FOLDER / "dictionary.txt"}
_GENERATED |= {DEMO_FOLDER / f"{name}{suffix}" for name in _DEMO_SETS for suffix in ("", ".csv")}
_WILDCARD = re.compile(r"\{\s*\w+\s*[,}]")  # what Snakemake replaces in paths
_MOST_SHARDS = 1000  # Snakemake plans each of the five jobs of a shard: 30 s for 1,000 shards
_LONGEST_LINE = 1000  # characters of a message
_LARGEST_MODEL_CONFIG = 2**20  # bytes
_CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

Value = TypeVar("Value")


def is_url(path: str) -> bool:
    """Return True for a URL, such as s3://bucket/photos, and False for a local path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


# Validators. They raise ValueError, which pydantic collects; `_describe_error` adds the key.


def _as_value_error(function: Callable[[Value], object]) -> Callable[[Value], Value]:
    """Turn a check that raises NadpipeError into a validator that returns its argument."""

    def validate(value: Value) -> Value:
        try:
            function(value)
        except NadpipeError as error:
            raise ValueError(str(error)) from None
        return value

    return validate


def _normalise_url(url: str) -> str:
    """Remove repeated and trailing slashes."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{re.sub('/+', '/', rest).rstrip('/')}"


def _check_path(path: str) -> str:
    if _WILDCARD.search(path):
        raise ValueError(f"{path!r} contains a name in braces, which Snakemake would replace; rename the file or folder")
    if is_url(path):
        return _normalise_url(path)
    if not path:
        raise ValueError("'' is empty; give an existing path or a URL")
    if not _exists(path) and Path(path) not in _GENERATED:
        raise ValueError(f"{path[:200]!r} does not exist; give an existing path or a URL")
    return path


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # such as a name that is too long
        return False


def _check_dictionary(name: str) -> str:
    try:
        named = is_named(name)
    except NadpipeError as error:
        raise ValueError(str(error)) from None
    return name if named else _check_path(name)


def _check_architecture(name: str) -> str:
    """Return a name of a model. Raise ValueError if it is neither a place nor a name that open_clip knows."""
    if name.endswith(".json"):
        return _check_path(name)
    known = {path.stem for path in _open_clip_configs().glob("*.json")}
    if ":" not in name and name.replace("/", "-") not in known:  # a colon names a place, such as hf-hub:
        near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.0)
        raise ValueError(f"open_clip has no model {name[:200]!r}; correct the name, for example {' or '.join(near)}")
    return name


def _open_clip_configs() -> Path:
    """Return open_clip's folder of model configs. Importing open_clip takes seconds."""
    package = importlib.util.find_spec("open_clip")
    origin = package and package.origin
    assert origin, "open_clip is a dependency"
    return Path(origin).parent / "model_configs"


def _check_checkpoint(name: str) -> str:
    return _check_path(name) if "/" in name or Path(name).suffix in _CHECKPOINT_SUFFIXES else name


def _check_distinct(values: list) -> list:
    repeated = {value for value in values if values.count(value) > 1}
    if repeated:
        raise ValueError(f"{', '.join(map(repr, sorted(repeated)))} is listed more than once; list each value once")
    return values


def _check_unmixed(values: list[int | float]) -> list[int | float]:
    if len({value < 1 for value in values}) > 1:
        raise ValueError(f"{values} mixes numbers and shares; give only numbers, or only shares below 1")
    return values


def _check_line(text: str) -> str:
    if not text.strip() or "\n" in text:
        raise ValueError(f"{text!r} is not one line of text; give one line that is not empty")
    problem = text_problem(text)
    if problem is not None:
        raise ValueError(problem)
    return text


def _check_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"{name!r} is not a device; use auto, cpu, mps, cuda or cuda:<number>")
    return name


def _parse_sink(value: Any) -> Any:
    if value in ("auto", "none", "last"):
        return value
    if re.fullmatch(r"\d+", str(value)):
        return int(value)
    raise ValueError(f"{value!r} is not a sink; use auto, none, last or the index of a spatial token, from 0")


def _parse_pair_count(value: Any) -> int | float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if number >= 1 and number.is_integer():
        return int(number)
    if 0 < number < 1:
        return number
    raise ValueError(f"{value!r} is not a number of pairs; give an integer from 1, or a share of all pairs between 0 and 1")


def _as_text(value: Any) -> Any:
    """Return a whole number as text: YAML reads a year as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _check_reference(group: str) -> str:
    if group.startswith("rolling:") and not re.fullmatch(r"rolling:[1-9]\d*", group):
        raise ValueError(f"{group!r} has no number of groups; write rolling:<n>, such as rolling:3")
    return group


def _check_dataset_name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError("the name is invalid; use lower-case letters, digits and _, with a letter first")
    if name in _RESERVED:
        raise ValueError(f"the name is reserved; use any name but {', '.join(sorted(_RESERVED))}")
    return name


def _check_class_names(classes: list[str]) -> None:
    parsed = [parse_names(names) for names in classes]
    for what, values in [("title", [title for title, _ in parsed]), ("name", [name for _, names in parsed for name in names])]:
        repeated = first_repeated(values)
        if repeated is not None:
            raise NadpipeError(f"more than one class has the {what} {repeated!r}; make them distinct")


def _reject_boolean(value: Any) -> Any:
    if isinstance(value, bool):  # an int to Python
        raise ValueError(f"{value} is not a number; give a number")
    return value


def _wrap_string(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _wrap_scalar(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _parse_null(value: Any) -> Any:
    return None if value == "null" else value  # `snakemake --config` passes null as text


# Types. `allowed` is the text of the column "Allowed values" for types that are not clear by themselves.


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Accept the keys of a registry and no other string."""

    names: Iterable[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(list(self.names))


def _allowed(text: str) -> Any:
    return Field(json_schema_extra={"allowed": text})


Integer = Annotated[int, BeforeValidator(_reject_boolean)]  # also accepts text: `snakemake --config` passes numbers as text
Count = Annotated[Integer, Field(ge=1)]
Number = Annotated[float, BeforeValidator(_reject_boolean), Field(allow_inf_nan=False)]
Share = Annotated[Number, Field(gt=0, le=1)]
Confidence = Annotated[Number, Field(gt=0.5, lt=1)]
Device = Annotated[str, AfterValidator(_check_device), _allowed("`auto`, `cpu`, `mps`, `cuda`, `cuda:<number>`")]
ExistingPath = Annotated[str, AfterValidator(_check_path), _allowed("path or URL")]
DatasetName = Annotated[str, AfterValidator(_check_dataset_name)]
Text = Annotated[str, AfterValidator(_check_line)]
Texts = Annotated[list[Text], Field(min_length=1), AfterValidator(_check_distinct)]
PairCount = Annotated[
    int | float, BeforeValidator(_parse_pair_count), _allowed("integer ≥ 1, or a share of all pairs, > 0 and < 1")
]
ClassNames = Annotated[
    list[Text],
    Field(min_length=2, max_length=256),
    AfterValidator(_check_distinct),
    AfterValidator(_as_value_error(_check_class_names)),
]
_FILE, _NAMES = "class file", "class names"  # tags of the union below; pydantic adds them to the location of an error
Classes = Annotated[
    Annotated[ExistingPath, Tag(_FILE)] | Annotated[ClassNames, Tag(_NAMES)],
    Discriminator(lambda value: _FILE if isinstance(value, str) else _NAMES),
    _allowed("path or URL of a class file, or a list of 2 to 256 texts"),
]
Layout = Annotated[str, OneOf(LAYOUTS)]
Method = Annotated[str, OneOf(METHODS)]
SelectBy = Literal["direction", "write"]
StoredType = Literal["float32", "float16"]
_RESERVED = {"dictionary", "concepts", "labels", "cache", "model", "text", "directions", "selection", "assignments"}

_SHORT = reprlib.Repr()  # of invalid values; anchors of YAML can make them too large to print
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200
_SHORT.maxlevel = 2

_SELECT_BY = "`direction` ranks pairs by cosine of the text to their signed direction, `write` by cosine to their write vector"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelSection(_Section):
    """The model and its weights. "Models" below says more."""

    architecture: Annotated[
        str,
        AfterValidator(_check_architecture),
        _allowed("name in open_clip, `hf-hub:<org>/<name>`, path or URL of a JSON file"),
    ] = Field(description="CLIP model that open_clip can build: a CLIP-ResNet, or a vision transformer (docs/towers.md).")
    pretrained: (
        Annotated[str, AfterValidator(_check_checkpoint), _allowed("tag of open_clip, path or URL of a checkpoint")] | None
    ) = Field(None, description="Weights of the model. null is for `hf-hub:` models, which bring their own.")
    block: Annotated[Annotated[Integer, Field(ge=0)] | None, BeforeValidator(_parse_null)] = Field(
        None,
        description="Block of a vision transformer whose MLP neurons are decomposed, from 0. The heads of all later blocks "
        "read them, or those of the pool behind the last block. null is the last block that a head reads. A CLIP-ResNet has no "
        "choice.",
    )


class Dataset(_Section):
    """Data sets: their images, and the meaning of their masks.

    Only `discovery` is required. `monitoring` has the groups that are compared. `segmentation.datasets` and `analyses.dataset`
    name further ones. `layout` and `path` are required, and keys that a layout does not read are refused.
    """

    layout: Layout = Field(description='Layout on disk; "Your own images" below describes each.')
    path: ExistingPath = Field(description="Table or folder of the data set.")
    split: str | None = Field(
        None,
        description="Split of a published layout; null is its validation split. For `folder`, the list `splits/<split>.txt`; "
        "null is all images.",
    )
    path_column: str = Field("path", description="Column of a table that contains the image paths.")
    mask_column: str | None = Field(None, description="Column of a table that contains the mask paths.")
    group_column: str | None = Field(None, description="Column of a table that contains the group (year, batch, source).")
    label_column: str | None = Field(None, description="Column of a table that contains the class label.")
    labels: ExistingPath | None = Field(
        None,
        description="CSV file with more columns. Its first column names each image: the file name, with or without suffix, and "
        "as many folders as tell images apart. Columns contain 0 and 1, or words; each word becomes a 0/1 column.",
    )
    bad_images: Literal["fail", "skip"] = Field(
        "fail",
        description="Response to unusable images: unreadable, truncated, several frames, over 64 times longer than wide, "
        "32-bit or floating-point pixels, listed twice, or with a mask of another size. `fail` reports all of them and stops. "
        "`skip` lists them in images.parquet with the reason and continues.",
    )
    shards: Annotated[Count, Field(le=_MOST_SHARDS)] = Field(
        1, description="Number of jobs that share the images, at most their number. Memory does not depend on it."
    )
    classes: Classes | None = Field(
        None,
        description="Class names in the order of the mask values (in any order without masks), or a class file. Synonyms are "
        "separated by commas. For a published layout, the names replace its own.",
    )
    reduce_zero_label: bool = Field(False, description="Ignore mask value 0; value 1 is the first class.")
    ignore: Annotated[Integer, Field(ge=0, le=65535)] = Field(
        255, description="Mask value that is ignored, if `classes` is a list."
    )
    background_names: bool = Field(True, description="Let the names of the class `background` compete with the others.")
    background_threshold: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.0, description="Pixels whose best class has a lower probability become background. 0 turns this off."
    )
    area_threshold: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.0, description="Classes that cover a smaller share of the image are removed."
    )


Datasets = dict[DatasetName, Dataset]


class Demo(_Section):
    """Sizes of the demo's data sets. They have no effect on other data sets."""

    discovery_images: Count = Field(600, description="Images of `discovery`.")
    segmentation_images: Count = Field(120, description="Images of `segmentation`.")
    monitoring_images_per_year: Count = Field(60, description="Images of `monitoring` per year; there are 8 years.")


class Features(_Section):
    """The image tower."""

    batch_size: Count = Field(16, description="Views per step. RN50x16 takes about 35 MB of memory per view.")
    workers: Annotated[Integer, Field(ge=0)] = Field(
        2, description="Processes that decode images ahead of the model. With 0, the main process decodes."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Precision of the convolutions. bfloat16 (autocast) is several times faster on hardware that supports it; "
        "the attention pool stays in float32. The log and the attribute `encode_image_error` report the difference from "
        "`encode_image` in float32 for the first views.",
    )
    dtype: StoredType = Field(
        "float32",
        description="Type of the stored activations. float16 halves the disk space; the array `rounding` holds the resulting "
        "error of each view's embedding.",
    )


class Contributions(_Section):
    """The coefficients of the pairs."""

    batch_size: Count = Field(64, description="Views per step.")
    dtype: StoredType = Field(
        "float32",
        description="Type of the stored coefficients. float16 halves the disk space; the array `rounding` holds the resulting "
        "error of each view's sum over pairs.",
    )
    tolerance: Annotated[Number, Field(gt=0, le=0.1)] = Field(
        1e-5,
        description="Largest relative difference between the sum over pairs and the embedding, beyond the `rounding` of the "
        "features. A larger difference is an error.",
    )


class Dense(_Section):
    """The dense contribution tensor (view, head, neuron, embed), an optional export."""

    datasets: Annotated[list[str], AfterValidator(_check_distinct), _allowed("list of names in `datasets`")] = Field(
        [],
        description="Data sets whose dense tensor `all` writes; RN50x16 takes 453 MB per image. A single shard is also "
        "available by its path, `results/artifacts/<dataset>/dense/<shard>.zarr`.",
    )
    dtype: StoredType = Field(
        "float32",
        description="Type of the stored tensor. float16 halves the disk space and keeps three digits, fewer below 6e-5.",
    )


class Directions(_Section):
    """The directions of pairs, neurons and heads."""

    top_share: Share = Field(
        0.05,
        description="Share of the discovery images, those with the largest norm, that a direction is fitted to and that decide "
        "its sign: at least 10 images and at most 50. With more than a fifth of the images, signs follow the median image "
        "instead of the extremes; the log and the report then show a warning.",
    )
    top_images: Annotated[Count | None, BeforeValidator(_parse_null)] = Field(
        None,
        description="Number of these images, instead of the share (published: 50 of 1,000). At most the number of discovery "
        "images; memory grows with it.",
    )
    components: Count = Field(3, description="Directions per neuron and per head. A pair has one.")


class TextSection(_Section):
    """Texts and their embeddings."""

    dictionary: Annotated[
        str,
        AfterValidator(_check_dictionary),
        _allowed("path or URL of a text file, `wordfreq:<count>`, `imagenet`"),
    ] = Field(
        "wordfreq:10000",
        description="Texts that name the units; their mean also centres the concepts. A file has one text per line. "
        "`wordfreq:<count>` is the most frequent English words of the wordfreq package. `imagenet` is open_clip's class names, "
        "each once; write `./imagenet` for a file of that name.",
    )
    templates: Annotated[
        Texts,
        BeforeValidator(_wrap_string),
        AfterValidator(_as_value_error(check_templates)),
        _allowed(f"list of texts with one `{{}}` each, {', '.join(f'`{name}`' for name in TEMPLATE_SETS)}"),
    ] = Field(
        ["imagenet-simple"],
        description="Prompts; `{}` stands for the text. An embedding is the mean over the prompts, so time grows with their "
        "number. open_clip's `imagenet` has 80 prompts, `imagenet-simple` 7.",
    )
    batch_size: Count = Field(256, description="Prompts per step of the text tower.")
    cache: Annotated[Annotated[str, Field(min_length=1), _allowed("path")] | None, BeforeValidator(_parse_null)] = Field(
        "results/artifacts/text/cache",
        description="Folder that keeps every embedding by model, templates and code, so a text is embedded once. Files in it "
        "never change, and any of them can be deleted. null turns the cache off.",
    )


class Assignments(_Section):
    """The texts that name units."""

    nearest: Count = Field(5, description="Texts per unit with the largest cosine.")
    atoms: Count = Field(16, description="Texts in a unit's sparse code. Time grows with it.")
    sparse_share: Share = Field(
        1.0,
        description="Share of the units that get a sparse code, those with the largest `std_norm`. All get nearest texts.",
    )
    device: Device = Field("cpu", description="Device of the matching pursuit.")


class Registers(_Section):
    """Attention sinks and register neurons."""

    images: Count = Field(200, description="Discovery images on which they are measured.")
    sink_factor: Annotated[Number, Field(gt=1)] = Field(
        3.0,
        description="A token is the sink if, in most images, its attention exceeds the median token's by this factor and no "
        "neighbour's is larger.",
    )
    rank_by: Literal["signed", "absolute"] = Field(
        "signed",
        description="Ranking of the neurons in results/registers.parquet: `signed` by the mean decrease of the sink's "
        "attention, `absolute` by its mean absolute change (published).",
    )


class Segmentation(_Section):
    """Training-free segmentation: [segmentation.md](segmentation.md)."""

    datasets: Annotated[list[str], AfterValidator(_check_distinct), _allowed("list of names in `datasets`")] = Field(
        [],
        description="Data sets to segment, with or without masks; without any, nothing is segmented. `discovery` and "
        "`monitoring` are not allowed, because their images are seen as one view.",
    )
    methods: Annotated[list[Method], Field(min_length=1), AfterValidator(_check_distinct)] = Field(
        ["nad", "nad_centred", "nad_shifted", "heads", "neurons", "maskclip", "sclip", "attention"],
        description="Methods to evaluate. " + " ".join(f"`{name}` is {method.summary}." for name, method in METHODS.items()),
    )
    k: Annotated[
        list[PairCount],
        Field(min_length=1),
        BeforeValidator(_wrap_scalar),
        AfterValidator(_check_distinct),
        AfterValidator(_check_unmixed),
    ] = Field(
        [0.1356],
        description="Pairs selected per text: a number, or a share of all pairs (heads × neurons). The default is the "
        "published share, 20,000 of the 147,456 pairs of RN50x16. Several values are a sweep.",
    )
    select_by: SelectBy = Field("write", description=f"Ranking of the pairs: {_SELECT_BY}.")
    scale: Annotated[Number, Field(ge=1, le=16)] = Field(
        1.0,
        description="Short side of the resized image, in multiples of the model's native size (not in pixels). Time and memory "
        "grow with its square.",
    )
    crop: Annotated[Number, Field(gt=0)] = Field(
        1.0,
        description="Side of the sliding crops, in multiples of the model's native size; a whole number of tokens, at most "
        "`scale`. Values other than 1 interpolate the positional embedding.",
    )
    stride: Share = Field(0.5, description="Distance between sliding crops, as a share of their side. Smaller is slower.")
    block: Annotated[Annotated[Integer, Field(ge=0)] | None, BeforeValidator(_parse_null)] = Field(
        None, description="Block of the last stage whose activations are used, from 0. null is the last block."
    )
    temperature: Annotated[Number, Field(gt=0)] = Field(40.0, description="Factor on the logits before the softmax.")
    resize: Literal["model", "opencv"] = Field(
        "model",
        description="Resizing of the images: `model` is the model's own filter (bicubic with antialiasing for OpenAI's "
        "weights), `opencv` is bilinear without antialiasing, as cv2 resizes (published).",
    )
    sink: Annotated[Any, AfterValidator(_parse_sink), _allowed("`auto`, `none`, `last`, integer ≥ 0")] = Field(
        "auto",
        description="Attention sink that is replaced: `auto` is the token measured in results/registers.parquet, `last` the "
        "last spatial token (published), an integer the index of a spatial token.",
    )
    sink_replacement: Literal["cosines", "vectors"] = Field(
        "cosines",
        description="Value at the sink: the mean of its neighbours' `cosines`, or the cosine of the mean of their `vectors` "
        "(published).",
    )
    overlays: Count = Field(12, description="Images drawn with their label maps.")
    extremes: Count = Field(6, description="Best images, and as many worst images, on each method's contact sheet.")
    confidence: Confidence = Field(0.95, description="Confidence level of the intervals.")


class Shift(_Section):
    """Concept scores per group of images."""

    concepts: Annotated[list[Text], AfterValidator(_check_distinct)] = Field(
        [], description="Texts to score; without any, no concept is scored."
    )
    k: PairCount = Field(
        0.03, description="Pairs selected per concept: a number, or a share of all pairs (published: 5 pairs)."
    )
    select_by: SelectBy = Field("write", description=f"Ranking of the pairs: {_SELECT_BY}.")
    centre: Literal["dictionary", "none"] = Field(
        "dictionary",
        description="Centring of the concepts: `dictionary` subtracts the mean of `text.dictionary`, `none` subtracts nothing "
        "(published).",
    )
    reference: (
        Annotated[str, BeforeValidator(_as_text), AfterValidator(_check_reference), _allowed("name of a group, `rolling:<n>`")]
        | None
    ) = Field(
        None,
        description="Group that the others are compared with. null is the first group, `rolling:<n>` the n groups before each; "
        "[analyses.md](analyses.md) says how groups are sorted.",
    )
    test: Literal["mann_whitney", "welch", "ks"] = Field(
        "mann_whitney",
        description="Test of a group against its reference in shift.csv. `ks` is Kolmogorov-Smirnov. Prefer the other two to "
        "`welch`, which raises too many false alarms for skewed scores in groups of unequal size. Discovered shifts always use "
        "`mann_whitney`.",
    )
    small_group: Count = Field(
        20, description="Groups with fewer images, and comparisons with them, are marked as small and not tested."
    )
    examples: Count = Field(4, description="Example images per pair in the table of discovered shifts.")
    confidence: Confidence = Field(0.95, description="Confidence level of the intervals.")


class Explorer(_Section):
    """The pages on all pairs."""

    images: Count = Field(4, description="Images shown for each end of a pair's direction.")
    thumbnail: Annotated[Integer, Field(ge=16)] = Field(160, description="Side of these images, in pixels.")


class Analyses(_Section):
    """Analyses of the pairs and of their names: [analyses.md](analyses.md)."""

    dataset: Annotated[Annotated[str, _allowed("name in `datasets`")] | None, BeforeValidator(_parse_null)] = Field(
        None,
        description="Data set with the labels for zero-shot accuracy and the 0/1 columns that names are compared with. It "
        "needs `label_column`, or folders as labels. null leaves these analyses out. ImageNet synsets (n01440764) get their "
        "class names.",
    )
    images: Count = Field(1000, description="Largest number of labelled images, evenly spread over the data set.")
    shares: Annotated[list[Share], Field(min_length=1), AfterValidator(_check_distinct)] = Field(
        [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0],
        description="Shares of the pairs to keep; the other pairs are set to their mean.",
    )
    ablate: Annotated[list[Share], Field(min_length=1), AfterValidator(_check_distinct)] = Field(
        [0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.8],
        description="Shares of the pairs that `faithfulness.csv` sets to their mean, for each concept and rule.",
    )
    draws: Count = Field(5, description="Random selections, directions and dictionaries, as controls.")
    atoms: Annotated[list[Count], Field(min_length=1), AfterValidator(_check_distinct)] = Field(
        [1, 2, 4, 8, 16], description="Numbers of texts that replace a direction, at most `assignments.atoms`."
    )
    control_units: Count = Field(
        10000,
        description="Largest number of units of a kind whose sparse codes are compared with codes over random atoms. If more "
        "have a code, the largest are compared. The time of the control grows with this number and with `draws`.",
    )
    top: Annotated[Integer, Field(ge=2)] = Field(20, description="Top images of a unit, at most half of the discovery images.")
    sheets: Count = Field(12, description="Neurons whose top images, and those of their pairs, are drawn.")
    confidence: Confidence = Field(0.95, description="Confidence level of the intervals.")


def _defaults_of(section: type[_Section]) -> Any:
    """Return a field whose default is a section in which every key has its default."""
    return Field(default_factory=section)


class Config(_Section):
    """All settings."""

    seed: Annotated[Integer, Field(ge=0)] = Field(0, description="Seed of the demo's scenes and the random controls.")
    device: Device = Field(
        "auto", description="Device of the image and text towers; no other stage uses it. `auto` is a GPU if there is one."
    )
    model: ModelSection
    datasets: Datasets
    demo: Demo = _defaults_of(Demo)
    features: Features = _defaults_of(Features)
    contributions: Contributions = _defaults_of(Contributions)
    dense: Dense = _defaults_of(Dense)
    directions: Directions = _defaults_of(Directions)
    text: TextSection = _defaults_of(TextSection)
    assignments: Assignments = _defaults_of(Assignments)
    registers: Registers = _defaults_of(Registers)
    segmentation: Segmentation = _defaults_of(Segmentation)
    shift: Shift = _defaults_of(Shift)
    explorer: Explorer = _defaults_of(Explorer)
    analyses: Analyses = _defaults_of(Analyses)

    @model_validator(mode="after")
    def _check_datasets(self) -> "Config":
        """Raise ValueError if a section names an unknown data set, or a data set that it cannot use."""
        required = {
            "datasets": ["discovery"],
            "dense.datasets": self.dense.datasets,
            "segmentation.datasets": self.segmentation.datasets,
            "analyses.dataset": [] if self.analyses.dataset is None else [self.analyses.dataset],
        }
        for key, names in required.items():
            missing = [name for name in names if name not in self.datasets]
            if missing:
                raise ValueError(f"{key}: no data set {missing[0]!r}; datasets has {', '.join(self.datasets)}")
        for name in self.segmentation.datasets:
            dataset = self.datasets[name]
            if name in ("discovery", "monitoring"):
                raise ValueError(
                    f"segmentation.datasets: {name} is seen as one view per image; list its images under another name"
                )
            if dataset.classes is None and not LAYOUTS[dataset.layout].has_classes:
                raise ValueError(
                    f"datasets.{name}.classes: missing; name the classes, because the layout {dataset.layout} has none"
                )
        if self.segmentation.crop > self.segmentation.scale:
            raise ValueError(
                f"segmentation.crop: {self.segmentation.crop} is larger than segmentation.scale, {self.segmentation.scale}; "
                "crops must fit in the resized image"
            )
        return self

    @model_validator(mode="after")
    def _check_top_images(self) -> "Config":
        """Raise ValueError if the demo has fewer discovery images than top images. Other data sets are counted by a job."""
        top, images = self.directions.top_images, self.demo.discovery_images
        drawn = Path(self.datasets["discovery"].path) == DEMO_FOLDER / "discovery.csv"
        if drawn and top is not None and top > images:
            raise ValueError(f"directions.top_images: {top} exceeds demo.discovery_images, {images}; lower it")
        return self

    @model_validator(mode="after")
    def _check_weights(self) -> "Config":
        """Raise ValueError for a model without weights."""
        if not self.model.pretrained and not self.model.architecture.startswith("hf-hub:"):
            raise ValueError("model.pretrained: no weights given; name a pretrained tag of open_clip or a checkpoint file")
        return self

    @model_validator(mode="after")
    def _check_keys_of_layouts(self) -> "Config":
        """Raise ValueError for keys that have no effect on a data set, for missing columns, and for doubtful classes."""
        lines = [f"datasets.{name}.{line}" for name, dataset in self.datasets.items() for line in _dataset_errors(dataset)]
        if lines:
            raise ValueError("\n".join(lines))
        return self

    @model_validator(mode="after")
    def _check_model_sizes(self) -> "Config":
        """Raise ValueError for more pairs than the model has, and for a token or a block that it lacks.

        Models without a config on this machine pass.
        """
        name, sizes = self.model.architecture, _model_sizes(self.model.architecture, self.model.block)
        if sizes is None:
            return self
        if sizes.pairs == 0:
            raise ValueError(f"model.block: no head of {name} reads the neurons of block {self.model.block}; lower it")
        for key, k in [("segmentation.k", max(self.segmentation.k)), ("shift.k", self.shift.k)]:
            if k > sizes.pairs:
                raise ValueError(f"{key}: {k} exceeds the {sizes.pairs} pairs of {name}; lower it")
        for key, what, index, count in [
            ("sink", "spatial token", self.segmentation.sink, sizes.tokens),
            ("block", "block of the last stage", self.segmentation.block, sizes.blocks),
        ]:
            if isinstance(index, int) and count is not None and index >= count:
                raise ValueError(f"segmentation.{key}: {name} has no {what} {index}; choose one from 0 to {count - 1}")
        return self

    @model_validator(mode="after")
    def _check_urls(self) -> "Config":
        """Raise ValueError if a URL is inside an image folder.

        An image folder is fetched as a whole, and a file inside it would be mistaken for the folder.
        """
        paths: dict[str, Any] = {f"model.{name}": getattr(self.model, name) for name in ("architecture", "pretrained")}
        paths["text.dictionary"] = self.text.dictionary
        folders = {}
        for name, dataset in self.datasets.items():
            paths |= {f"datasets.{name}.{key}": getattr(dataset, key) for key in ("labels", "classes")}
            if is_url(dataset.path):
                folders[f"datasets.{name}.path"] = LAYOUTS[dataset.layout].image_folder(dataset.path)
        urls = folders | {key: path for key, path in paths.items() if isinstance(path, str) and is_url(path)}
        for key, folder in folders.items():
            if folder.count("/") < 3:
                raise ValueError(f"{key}: {folder} is a whole bucket; move the images to a folder, which is fetched as a whole")
            inside = [other for other, url in urls.items() if url.startswith(f"{folder}/")]
            if inside:
                raise ValueError(
                    f"{inside[0]}: {urls[inside[0]]} is inside {folder}, which is fetched as a whole for {key}; keep them apart"
                )
        return self


def _is_set(dataset: Dataset, key: str) -> bool:
    return getattr(dataset, key) != Dataset.model_fields[key].default


def _dataset_errors(dataset: Dataset) -> Iterator[str]:
    """Yield one line for each error of a data set that its keys and its files show together, without its name."""
    layout = LAYOUTS[dataset.layout]
    listed, path = isinstance(dataset.classes, list), Path(dataset.path)
    files = [] if is_url(dataset.path) or layout.has_fixed_values else layout.class_files(path)
    if files and dataset.classes is not None:
        yield f"classes: {files[0]} already names the classes; remove the key or the file"
    for key in SOURCE_KEYS:
        if key not in layout.keys and _is_set(dataset, key):
            yield f"{key}: the layout {layout.name} does not read it; remove it"
    has_masks = layout.lacks("masks", dataset.model_dump()) is None
    if _is_set(dataset, "ignore") and (not listed or layout.has_fixed_values):
        yield "ignore: it applies only to classes that are listed in the config; remove it"
    elif _is_set(dataset, "ignore") and not has_masks:
        yield "ignore: it applies only to masks, and the data set has none; remove it"
    if _is_set(dataset, "reduce_zero_label") and (dataset.classes is None or layout.has_fixed_values):
        yield "reduce_zero_label: it applies only to classes that the config gives; remove it"
    elif _is_set(dataset, "reduce_zero_label") and not has_masks:
        yield "reduce_zero_label: it applies only to masks, and the data set has none; remove it"
    if layout.is_file and path.is_file():
        try:
            columns = column_names(path)
        except NadpipeError as error:
            yield f"path: {error}"
            return
        for key in ("path_column", "mask_column", "group_column", "label_column"):
            column = getattr(dataset, key)
            if column is not None and column not in columns:
                yield f"{key}: {path} has no column {column}; choose one of {', '.join(columns)}"


class _ModelSizes(NamedTuple):
    """Sizes of a model.

    pairs: their number. tokens: spatial tokens of an image of the model's size. blocks: of the last stage of a CLIP-ResNet,
    whose activations can be segmented; None for a vision transformer.
    """

    pairs: int
    tokens: int
    blocks: int | None


def _model_sizes(architecture: str, block: int | None) -> _ModelSizes | None:
    """Return the sizes of a model, or None if its config is not on this machine.

    A CLIP-ResNet of width w has 32 w neurons, heads of width `head_width` (64 by default) over as many channels, and tokens of
    32 × 32 pixels. A vision transformer of width w has w · `mlp_ratio` neurons, and the heads of all blocks after `block`, or
    of its attentional pooler. The sizes of timm's models are not in their configs.
    """
    path = Path(architecture)
    if not architecture.endswith(".json"):
        path = _open_clip_configs() / f"{architecture.replace('/', '-')}.json"
    try:
        vision = json.loads(read_regular(path, _LARGEST_MODEL_CONFIG))
        vision = vision.get("model_cfg", vision)["vision_cfg"]
        if "timm_model_name" in vision:
            return None
        layers, side = vision.get("layers", 12), vision.get("image_size", 224)
        if isinstance(layers, list):
            neurons = 32 * vision["width"]
            heads = neurons // vision.get("head_width", 64)
            return _ModelSizes(neurons * heads, (side // 32) ** 2, layers[-1])
        heads = vision["width"] // vision.get("head_width", 64)
        late = 1 if block is None else max(0, layers - 1 - block)
        if vision.get("attentional_pool"):
            heads, late = vision.get("attn_pooler_heads", 8), int(block is None or block < layers)
        neurons = int(vision["width"] * vision.get("mlp_ratio", 4))
        return _ModelSizes(neurons * heads * late, (side // vision.get("patch_size", 16)) ** 2, None)
    except (NadpipeError, ValueError, TypeError, LookupError, AttributeError, ZeroDivisionError, OverflowError, RecursionError):
        return None  # the model is opened, and its config checked, by the first job


def check(config: dict[str, Any], source: str = "config") -> dict[str, Any]:
    """Check a config and return it, complete, as plain values.

    source: start of every line of a message, such as the name of the config file.

    Raises NadpipeError if the config has errors. The message has one line per error: the full key, what is wrong, and what
    to do.
    """
    if exceeds(config, _children):
        raise NadpipeError(
            f"{source}: more than {MOST_VALUES:,} values; remove aliases (*name) that repeat lists, or name a file instead"
        )
    broken = next(_broken_texts(config), None)
    if broken is not None:
        key, text = broken
        raise NadpipeError(f"{source}: {printable(key[:200])}: {text[:80]!r} contains a NUL or half of a character; remove it")
    try:
        return Config.model_validate(config).model_dump()
    except ValidationError as error:
        lines = dict.fromkeys(line for details in error.errors() for line in _describe_error(details).split("\n"))
        raise NadpipeError("\n".join(_shorten(f"{source}: {line}") for line in lines)) from None


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _shorten(line: str) -> str:
    """Return a line without the middle of a value that is too long for a message."""
    half = _LONGEST_LINE // 2
    return line if len(line) <= _LONGEST_LINE else f"{line[:half]} … {line[-half:]}"


def _broken_texts(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the key and the text of each text that no command line or file can contain: NUL, and halves of surrogate pairs."""
    waiting: list[tuple[str, Any]] = [("", config)]
    seen = set[int]()  # an anchor of YAML may contain itself
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            yield key, value
        elif isinstance(value, dict | list) and id(value) not in seen:
            seen.add(id(value))
            pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
            waiting += [(f"{key}.{name}".lstrip("."), item) for name, item in pairs]
            waiting += [(key, name) for name, _ in pairs]


def _describe_error(details: ErrorDetails) -> str:
    """Return one line for one error of pydantic."""
    location = [step for step in details["loc"] if step not in (_FILE, _NAMES)]
    key = ".".join(map(str, location if location[-1:] != ["[key]"] else location[:-1]))
    match details["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key; use one of {', '.join(_section_keys(location[:-1]))}"
        case "missing":
            return f"{key}: missing; add it (docs/configuration.md lists every key)"
        case "value_error":
            message = str(details["ctx"]["error"])
            return f"{key}: {message}" if location else message  # checks of several keys name the key themselves
        case "too_short":
            return f"{key}: {details['ctx']['actual_length']} items are too few; list at least {details['ctx']['min_length']}"
        case "too_long":
            return f"{key}: the list is too long; list at most {details['ctx']['max_length']} items"
    rule = re.sub(r"^(Input|String) should", "it should", details["msg"])
    rule = re.sub(r", (unable to|got a) .*", "", rule)
    rule = re.sub(r"a valid dictionary( or instance of \w+)?", "a section with keys", rule)
    return f"{key}: {_SHORT.repr(details['input'])} is invalid; {rule}"


def _section_keys(location: list[int | str]) -> list[str]:
    """Return the keys of the section at a location."""
    section: Any = Config
    for step in location:
        section = Dataset if section == Datasets else section.model_fields[step].annotation
    return list(section.model_fields)
