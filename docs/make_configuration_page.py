"""Print docs/configuration.md from nadpipe/config.py: python docs/make_configuration_page.py > docs/configuration.md"""

import math
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from nadpipe.config import Config
from nadpipe.data.layouts import LAYOUTS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from changes import CHANGES, EDITS, completed  # noqa: E402  (a table of the tests, which is not in the package)

HEAD = """# Configuration

Made by `python docs/make_configuration_page.py` from the descriptions in `nadpipe/config.py`.

`config.yaml` contains every key and runs the demo. Write your own file with only the keys that differ, and pass it with
`--configfile`; Snakemake merges it into `config.yaml`. The merged config is checked before the first job. Unknown keys,
wrong types, values out of range and missing paths are reported together, one line each.

## How to read the tables

- *Default* is the value in `config.yaml`. For data sets it is the value of a key that is not given.
- *Rules that rerun* names the first rules that rerun when the key changes. Rules that depend on their results follow, and
  no others; [changes.md](changes.md) lists all of them. "none" marks keys that change how a stage runs but not its results.
  All other keys except those of `dense` also rerun describe_results and make_report, which record the settings.

A code edit also reruns the stages whose results it can change; [changes.md](changes.md) lists them per module.

## Keys
"""
TAIL = """## Models

`model.architecture` is a CLIP-ResNet that open_clip can build: RN50, RN101, RN50x4, RN50x16, RN50x64, or one of their
`-quickgelu` variants. It can also be `hf-hub:<org>/<name>`, or the path of a model config in JSON. A model without a
single-query attention pool, such as a ViT, is refused.

`model.pretrained` is an open_clip tag or a local file: safetensors, the output of `torch.save(model.state_dict())`, or the
TorchScript archive published by OpenAI. Only tensors are read from the file. OpenAI's weights were trained with QuickGELU;
nadpipe turns it on for the tag `openai` and for OpenAI's archives.

## Your own images

A layout says how a data set is stored on disk:

{layouts}

The default split is the first. For `stanford_cars`, the label is the class and the group is the year at the end of the class
name. [segmentation.md](segmentation.md) says more about data sets with masks.

Photographs are rotated according to their EXIF orientation. If the monitoring table has a column that is named like a
concept and contains 0 and 1, the column serves as the concept's labels.

nadpipe does not notice when an image changes but its path does not. After changing images, touch the table or the folder.

A URL (`s3://bucket/photos`) can replace a path and is fetched: [running.md](running.md).
"""
# The demo writes no dense tensor, so a change of this key reruns nothing there.
NOT_IN_DEMO = {"dense.dtype": ["export_dense"]}


def main() -> None:
    """Print the page."""
    schema = Config.model_json_schema()
    defaults = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    print(HEAD)
    general = {name: key for name, key in schema["properties"].items() if "description" in key}
    print_table("", general, defaults)
    for name, key in schema["properties"].items():
        if name in general:
            continue
        many = "additionalProperties" in key  # data sets: the same keys under any name
        section = schema["$defs"][(key["additionalProperties"] if many else key)["$ref"].rpartition("/")[2]]
        print(f"\n### {name}\n\n{section['description']}\n")
        prefix = f"{name}.<dataset>." if many else f"{name}."
        values = {key: field.get("default", ...) for key, field in section["properties"].items()} if many else defaults[name]
        print_table(prefix, section["properties"], values)
    print("\n" + TAIL.replace("{layouts}", layout_table()), end="")


def print_table(prefix: str, keys: dict[str, dict[str, Any]], defaults: dict[str, Any]) -> None:
    """Print one row per key of a section."""
    print("| Key | Default | Allowed values | Meaning | Rules that rerun |\n|---|---|---|---|---|")
    for name, schema in keys.items():
        key = f"{prefix}{name}"
        default = "required" if defaults[name] is ... else f"`{as_yaml(defaults[name])}`"
        rules = ", ".join(first_rules(key)) or "none"
        print(f"| `{key}` | {default} | {allowed_values(schema)} | {schema['description']} | {rules} |")


def layout_table() -> str:
    """Return the table of layouts."""
    rows = [
        f"| `{name}` | {layout.description.replace('<', '&lt;')} | {', '.join(layout.splits)} |"
        for name, layout in LAYOUTS.items()
    ]
    return "\n".join(["| `layout` | `path` | `split` |", "|---|---|---|", *rows])


def as_yaml(value: Any) -> str:
    """Return a value as config.yaml would have it."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True).removesuffix("\n...\n").strip()


def allowed_values(schema: dict[str, Any]) -> str:
    """Return the values that a JSON schema allows, in words."""
    if "allowed" in schema:
        return schema["allowed"]
    if "anyOf" in schema:
        return ", ".join(allowed_values(option) for option in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        return "list of " + re.sub(r"^(text|integer|number)", r"\1s", allowed_values(schema["items"]))
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = " and ".join(f"{sign} {schema[name]}" for name, sign in signs.items() if name in schema)
    name = {"string": "text", "boolean": "`true`, `false`", "null": "`null`"}.get(schema["type"], schema["type"])
    return f"{name} {bounds}".strip()


def first_rules(key: str) -> list[str]:
    """Return the rules that rerun first when a key changes: those that depend on no other rule that reruns."""
    plans = [completed(plan, name) for name, (_, plan) in CHANGES.items() if as_page_key(name) == key]
    rules = dict.fromkeys(rule for plan in plans for rule in plan if rule not in ("describe_results", "make_report"))
    return [rule for rule in rules if not any(depends(rule, other) for other in rules)] or NOT_IN_DEMO.get(key, [])


def as_page_key(key: str) -> str:
    """Replace the name of a data set by <dataset>."""
    return re.sub(r"^datasets\.\w+\.", "datasets.<dataset>.", key)


def depends(rule: str, other: str) -> bool:
    """Return whether a rule uses results of another one: it reruns when the other one's stage is edited.

    Rules with a common stage share the beginning of their names and do not depend on each other.
    """
    return not rule.startswith(other) and rule in completed(EDITS.get(f"stages/{other}.py", {}))


if __name__ == "__main__":
    main()
