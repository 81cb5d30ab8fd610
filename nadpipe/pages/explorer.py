"""Reader of the explorer's files, for commands that show the same data in a terminal."""

import dataclasses
import functools
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int8
from PIL import Image

from nadpipe.errors import NadpipeError, visible
from nadpipe.pages.pictures import colour_bar, contact_sheet, heat_overlay, heat_steps
from nadpipe.store.checksums import Listing, read_listing

NAMING_RULES = {"active": "texts by correlation", "nearest": "texts by direction", "sparse": "sparse code"}


@dataclasses.dataclass(frozen=True)
class Explorer:
    """An explorer on disk. All methods raise NadpipeError if a file is missing or damaged."""

    folder: Path

    @functools.cached_property
    def sizes(self) -> dict[str, Any]:
        """Return the sizes of the model and of the pages."""
        return self.load("about")

    @functools.cached_property
    def texts(self) -> list[str]:
        """Return all texts that name a pair."""
        return self.load("texts")

    @functools.cached_property
    def _listing(self) -> Listing:
        """Return the checksums of all files. Raises OSError if there is no explorer, and NadpipeError if they are damaged."""
        return read_listing(self.folder)

    def load(self, name: str) -> Any:
        """Return the content of data/<name>.js."""
        path = self.folder / "data" / f"{name}.js"
        try:
            content = self._listing.read(f"data/{name}.js").decode()
            return json.loads(content.removeprefix(f'receive("{name}",').removesuffix(");"))
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None

    def check_index(self, kind: str, index: int) -> int:
        """Return the index of a neuron if the model has it. Otherwise raise NadpipeError."""
        count = self.sizes[f"{kind}s"]
        if not 0 <= index < count:
            raise NadpipeError(f"{kind} {index}: not in the model; the model has {kind}s 0 to {count - 1}")
        return index

    def find_head(self, name: str) -> int:
        """Return the index of the head with this name, such as 9.3 for head 3 of block 9, or 12 in an attention pool.

        Raises NadpipeError if the model has no such head.
        """
        names = self.sizes["names"]
        if name not in names:
            raise NadpipeError(f"head {name}: not in the model; the model has heads {names[0]} to {names[-1]}")
        return names.index(name)

    def pair_name(self, head: int, neuron: int) -> str:
        """Return the name of a pair: that of its head, and its neuron."""
        return f"{self.sizes['names'][head]}/{neuron}"

    def firing(self, head: int, neuron: int) -> Int8[np.ndarray, "shown row column"]:
        """Read maps of where a pair fires in its top and bottom images, in steps of 1/127 of the pair's scale."""
        path = self.folder / "data" / "firing" / f"{neuron}.png"
        grid = self.sizes["grid"]
        try:
            with Image.open(io.BytesIO(self._listing.read(f"data/firing/{neuron}.png"))) as image:
                steps = heat_steps(image)
            return steps.reshape(self.sizes["heads"], grid, -1, grid)[head].swapaxes(0, 1)
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None

    def image(self, image_id: int) -> Image.Image:
        """Read the thumbnail of an image's crop, as the model saw it."""
        path = self.folder / "data" / "images" / f"{image_id}.jpg"
        try:
            with Image.open(io.BytesIO(self._listing.read(f"data/images/{image_id}.jpg"))) as image:
                return image.convert("RGB")
        except OSError as error:
            raise _unreadable(path, error) from None

    def pictures(self, pair: dict[str, Any], neuron: int) -> list[tuple[str, Image.Image]]:
        """Return a pair's top images, then its bottom images, titled with their coefficients, under maps of where it fires."""
        rows = zip(pair["images"], pair["values"], self.firing(pair["head"], neuron), strict=True)
        return [(f"{value:.3g}", heat_overlay(self.image(image_id), steps / 127)) for image_id, value, steps in rows]

    def sheet(self, title: str, pairs: Sequence[tuple[dict[str, Any], int]]) -> Image.Image:
        """Return a contact sheet with the top and bottom images of pairs. pairs: each pair with its neuron."""
        sections = {}
        for pair, neuron in pairs:
            pictures = self.pictures(pair, neuron)
            half = len(pictures) // 2
            name = f"pair {self.pair_name(pair['head'], neuron)}: {self.format_texts(pair['texts'].get('active', [])[:1])}"
            sections[name] = [
                ("top images, with coefficients along the direction", pictures[:half]),
                ("bottom images", pictures[half:]),
                ("colour: part of the coefficient from each token", [("", colour_bar(pair["scale"]))]),
            ]
        return contact_sheet(title, sections, {})

    def find_texts(self, text: str) -> list[str]:
        """Return the texts that name pairs and contain a text, in any case; whole words and short texts first.

        Raises NadpipeError if there is none.
        """
        query = text.strip().lower()
        matches = [name for name in self.texts if query and query in name.lower()]
        if not matches:
            raise NadpipeError(f"search: no text that names a pair contains {text!r}; search for another word")
        return sorted(matches, key=lambda name: (name.lower() != query, query not in name.lower().split(), len(name)))

    def pairs_of(self, text: str) -> dict[str, list[Any]]:
        """Return head, neuron, weight and rank of the pairs with one of `texts`, by naming rule."""
        number = self.texts.index(text)
        pairs = self.load(f"texts/{number // self.sizes['texts']}")[str(number)]
        return {rule: pairs[rule] for rule in NAMING_RULES if rule in pairs}

    def format_texts(self, texts: Sequence[Sequence[int | float]]) -> str:
        """Return texts with their weights as one line. texts: number and weight of each."""
        return visible(", ".join(f"{self.texts[int(number)]} ({weight:.2f})" for number, weight in texts)) or "–"


def _unreadable(path: Path, error: Exception) -> NadpipeError:
    return NadpipeError(f"{path}: not readable ({type(error).__name__}); make it with snakemake results/explorer")
