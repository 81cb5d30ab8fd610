"""What the explorer's files say, for commands that show the same in a terminal."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int8
from PIL import Image

from nadpipe.errors import NadpipeError
from nadpipe.pictures import contact_sheet, heat_overlay

WAYS = {"active": "goes with the images", "nearest": "nearest to the direction", "sparse": "sparse code"}


@dataclasses.dataclass(frozen=True)
class Pages:
    """An explorer on disk."""

    folder: Path

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """Sizes of the model and of the pages."""
        return self.load("about")

    @functools.cached_property
    def texts(self) -> list[str]:
        """All texts that name a pair."""
        return self.load("texts")

    def load(self, name: str) -> Any:
        """One file. Raises NadpipeError where there is none."""
        path = self.folder / "data" / f"{name}.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise NadpipeError(
                f"{path}: not readable ({type(error).__name__}); make it with snakemake results/explorer"
            ) from None

    def check(self, what: str, index: int) -> int:
        """An index of a head or neuron that the model has. Raises NadpipeError for others."""
        count = self.about[f"{what}s"]
        if not 0 <= index < count:
            raise NadpipeError(f"{what} {index}: the model has {what}s 0 to {count - 1}")
        return index

    def firing(self, head: int, neuron: int) -> Int8[np.ndarray, "shown row column"]:
        """Where a pair fires in the images at its ends, in steps of each one's largest."""
        values = np.fromfile(self.folder / "data" / "firing" / f"{neuron}.bin", np.int8)
        return values.reshape(self.about["heads"], -1, self.about["grid"], self.about["grid"])[head]

    def image(self, image_id: int) -> Image.Image:
        """What the model saw of an image, small."""
        with Image.open(self.folder / "data" / "images" / f"{image_id}.jpg") as image:
            return image.convert("RGB")

    def pictures(self, pair: dict[str, Any], neuron: int) -> list[Image.Image]:
        """The images at a pair's ends with where it fires: those at its top, then those at its bottom."""
        maps = self.firing(pair["head"], neuron)
        return [heat_overlay(self.image(image_id), one / 127) for image_id, one in zip(pair["images"], maps, strict=True)]

    def sheet(self, title: str, pairs: Sequence[tuple[dict[str, Any], int]]) -> Image.Image:
        """A sheet of pairs, each with its neuron, as two entries: its top and its bottom images."""
        sections = {}
        for pair, neuron in pairs:
            pictures = self.pictures(pair, neuron)
            half = len(pictures) // 2
            active = self.named(pair["texts"].get("active", [])[:1])
            name = f"pair {pair['head']}/{neuron}: goes with {active}"
            sections[name] = [("top images", pictures[:half]), ("bottom images", pictures[half:])]
        return contact_sheet(title, sections, {})

    def named(self, texts: Sequence[Sequence[int | float]]) -> str:
        """Texts by number with their weights, in words."""
        return ", ".join(f"{self.texts[int(text)]} ({weight:.2f})" for text, weight in texts) or "–"
