"""Write a commented config.yaml for a new study."""

import json
import string
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nadpipe.errors import NadpipeError, printable
from nadpipe.start.run import workflow_folder

_CONFIGS = Path(__file__).parent / "configs"
_NAME = "config.yaml"
_PATHS = {"images": "photos", "segmentation": "segmentation.csv", "monitoring": "monitoring.csv"}  # what --path is by default


def init(
    case: Annotated[Literal["images", "segmentation", "monitoring", "demo"], tyro.conf.Positional] = "images",
    folder: Path = Path(),
    photos: str = "photos",
    path: str | None = None,
    architecture: str = "RN50-quickgelu",
    pretrained: str = "openai",
) -> None:
    """Write config.yaml: a complete config for one case, with a comment on every choice. Edit it, then use `nadpipe run`.

    Args:
        case: images: name the pairs of a model from a folder of photographs. segmentation: also segment images, with or without
            masks. monitoring: also compare groups of images, such as years. demo: the embedded demo.
        folder: Folder of the study. It is created if it does not exist; an existing config.yaml is kept, and is an error.
        photos: Folder with the photographs that the directions are fitted to, seen from the study's folder.
        path: Table of the images to segment or to monitor, seen from the study's folder. By default segmentation.csv or
            monitoring.csv.
        architecture: Model: a name of open_clip, hf-hub:<org>/<name>, or a model config in JSON.
        pretrained: Weights: a tag of open_clip or a checkpoint.
    """
    text = (workflow_folder() / _NAME if case == "demo" else _CONFIGS / f"{case}.yaml").read_text(encoding="utf-8")
    if case != "demo":
        weights = None if architecture.startswith("hf-hub:") else pretrained
        values = {"photos": photos, "path": path or _PATHS[case], "architecture": architecture, "pretrained": weights}
        text = string.Template(text).substitute({name: json.dumps(value) for name, value in values.items()})
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / _NAME
    try:
        with config.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise NadpipeError(f"{printable(str(config))}: exists and is kept; remove it, or give another --folder") from None
    place = "" if folder == Path() else f"in {printable(str(folder))}: "
    print(f"wrote {printable(str(config))}; edit it, then run {place}nadpipe run --cores 8")
