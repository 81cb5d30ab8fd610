"""Read the results of a run in a program: tables, stores, pairs and their images, and new images by the same model."""

import dataclasses
import functools
import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray
from jaxtyping import UInt8
from PIL import Image

from nadpipe.data.views import read_image
from nadpipe.errors import NadpipeError
from nadpipe.library.decomposition import TEMPLATES, Decomposition, Names, Photograph, decompose
from nadpipe.library.segmentation import segment_files
from nadpipe.pages.explorer import NAMING_RULES, Explorer
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds import all_kinds
from nadpipe.store.kinds.model import READOUT
from nadpipe.store.kinds.units import UNIT_TABLES
from nadpipe.store.results import read_result, read_settings
from nadpipe.store.schema import CsvKind, StoreKind, TableKind
from nadpipe.store.stamp import Stamp
from nadpipe.store.tables import read_parquet
from nadpipe.towers.model import Model, load_model

_NAMES = ("head", "neuron", "active_text")  # columns of pairs.parquet


def read_names(folder: Path, stamp: Stamp) -> Names:
    """Return the text of each pair, chosen by correlation, by head and neuron; nothing if the results have no pairs.parquet.

    stamp: model that the results must be of. Raises NadpipeError if they are of another one, or if the table is damaged.
    """
    path = folder / "pairs.parquet"
    if not path.exists():
        return {}
    table = read_parquet(path, UNIT_TABLES["pair"], stamp, columns=list(_NAMES))
    head, neuron, text = (table[name] for name in _NAMES)
    return dict(zip(zip(head, neuron, strict=True), text, strict=True))


@dataclasses.dataclass(frozen=True)
class Pair:
    """One pair of a run, as the explorer shows it.

    texts: one row per naming rule and text, with columns rule, text and weight. top, bottom: the images with the largest and
    smallest coefficients along the pair's direction, under a map of where the pair fires, with their coefficients.
    """

    name: str
    head: int
    neuron: int
    rank: int
    mean: float
    std: float
    texts: pd.DataFrame
    top: list[tuple[float, Image.Image]]
    bottom: list[tuple[float, Image.Image]]
    sheet: Image.Image = dataclasses.field(repr=False)

    def _repr_png_(self) -> bytes | None:
        """Show the pair's images in a notebook."""
        return self.sheet._repr_png_()


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The label map of one image.

    labels: class of each pixel, a position in `classes`. overlay: the image, tinted in the colours of the classes. shares: by
    class, the share of its pixels.
    """

    labels: UInt8[np.ndarray, "row column"]
    classes: list[str]
    overlay: Image.Image
    shares: pd.Series

    def _repr_png_(self) -> bytes | None:
        """Show the overlay in a notebook."""
        return self.overlay._repr_png_()


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of a run. Every file is compared with its checksum before it is used.

    All methods raise NadpipeError if a file is missing, damaged or of another model.
    """

    folder: Path

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that the results depend on, with paths of the model as seen from here."""
        return read_settings(self.folder)

    @functools.cached_property
    def model(self) -> Model:
        """The model of the run, loaded at the first use."""
        section = self.settings["model"]
        return load_model(section["architecture"], section["pretrained"], "auto")

    @property
    def tables(self) -> list[str]:
        """Names of the tables that exist, such as pairs and shift/discovered."""
        return sorted(self._found(CsvKind, TableKind))

    @property
    def stores(self) -> list[str]:
        """Names of the Zarr stores that exist, such as discovery/contributions/0."""
        return sorted(self._found(StoreKind))

    def __getitem__(self, name: str) -> pd.DataFrame:
        """Return a table by its name in `tables`."""
        found = self._found(CsvKind, TableKind)
        if name not in found:
            raise NadpipeError(f"{name}: no such table in {self.folder}; it has {', '.join(sorted(found)) or 'none'}")
        path, kind = found[name]
        assert not isinstance(kind, StoreKind)
        return read_result(path, kind)

    def open_store(self, name: str) -> xarray.Dataset:
        """Open a Zarr store by its name in `stores`. Arrays are read when they are used."""
        found = self._found(StoreKind)
        if name not in found:
            raise NadpipeError(f"{name}: no such store in {self.folder}; it has {', '.join(sorted(found)) or 'none'}")
        path, kind = found[name]
        assert isinstance(kind, StoreKind)
        open_zarr(path, kind)  # compares sizes and the checksums of metadata; chunks are compared when they are read
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* is not recognized as a component of a Zarr hierarchy", UserWarning)
            return xarray.open_zarr(path, chunks=None, consolidated=False)

    @functools.cached_property
    def names(self) -> Names:
        """Text of each pair, chosen by correlation, by head and neuron."""
        stamp = open_zarr(self.folder / "artifacts" / "model" / "readout.zarr", READOUT).stamp
        return read_names(self.folder, stamp)

    def search(self, text: str, most: int = 10) -> pd.DataFrame:
        """Return the pairs that fit a text best, by each naming rule.

        Columns: text, rule, pair, head, neuron, weight, rank. Raises NadpipeError if no text that names a pair contains `text`.
        """
        explorer = self._explorer
        best, *_ = explorer.find_texts(text)
        rows = [
            {"text": best, "rule": rule, "pair": explorer.pair_name(head, neuron), "head": head, "neuron": neuron}
            | {"weight": weight, "rank": rank}
            for rule, pairs in explorer.pairs_of(best).items()
            for head, neuron, weight, rank in pairs[:most]
        ]
        return pd.DataFrame(rows)

    def pair(self, head: int | str, neuron: int) -> Pair:
        """Return a pair with its texts and images. head: its number, or <block>.<head> as in 9.3."""
        explorer = self._explorer
        index = explorer.find_head(head) if isinstance(head, str) else explorer.check_index("head", head)
        content = explorer.load(f"neurons/{explorer.check_index('neuron', neuron)}")["pairs"][index]
        pictures = zip(content["values"], (picture for _, picture in explorer.pictures(content, neuron)), strict=True)
        shown, half = list(pictures), len(content["images"]) // 2
        texts = [
            {"rule": rule, "text": explorer.texts[number], "weight": weight}
            for rule in NAMING_RULES
            for number, weight in content["texts"].get(rule, [])
        ]
        name = explorer.pair_name(index, neuron)
        sizes = (int(content["rank"]), float(content["mean"]), float(content["std"]))
        table = pd.DataFrame(texts, columns=["rule", "text", "weight"])
        sheet = explorer.sheet(f"pair {name}", [(content, neuron)])
        return Pair(name, index, neuron, *sizes, table, shown[:half], shown[half:], sheet)

    def decompose(self, images: Photograph | Sequence[Photograph], batch_size: int = 16) -> Decomposition:
        """Decompose images with the model and the block of the run; pairs have the run's texts."""
        return decompose(self.model, images, self.settings["model"]["block"], self.names, batch_size)

    def explain(
        self, image: Photograph, texts: Sequence[str], most: int = 8, templates: Sequence[str] = TEMPLATES
    ) -> pd.DataFrame:
        """Return the pairs that add most to the cosine of an image and each text, as `Decomposition.explain`."""
        return self.decompose(image).explain(texts, most, templates=templates)

    def segment(self, image: Photograph, classes: Sequence[str], method: str = "nad") -> Segmentation:
        """Segment an image with classes that texts name, by the directions and settings of the run.

        classes: "name, synonym" or "title: name, synonym", at least two. method: one of docs/configuration.md; of a sweep over
        k, the first k counts.
        """
        with tempfile.TemporaryDirectory(prefix="nadpipe-") as name:
            source, output = Path(name) / "image.png", Path(name) / "segmented"
            photograph = image if isinstance(image, Image.Image) else read_image(str(image))
            photograph.convert("RGB").save(source)
            table = segment_files([source], classes, output, self.folder, [method])
            [labels, *_] = sorted((output / "labels").glob("*/image.png"))
            [overlay, *_] = sorted((output / "overlays").glob("**/image.png"))
            table = table[: len(classes)].set_index("class")
            with Image.open(labels) as map_, Image.open(overlay) as picture:
                return Segmentation(np.asarray(map_).copy(), list(table.index), picture.convert("RGB"), table["share"])

    @functools.cached_property
    def _explorer(self) -> Explorer:
        return Explorer(self.folder / "explorer")

    def _found(self, *types: type) -> dict[str, tuple[Path, StoreKind | TableKind | CsvKind]]:
        """Return path and kind of the artifacts of some types that exist, by name."""
        found: dict[str, tuple[Path, StoreKind | TableKind | CsvKind]] = {}
        for kind in all_kinds():
            if not isinstance(kind, types) or "/cache/" in kind.path:
                continue
            pattern = kind.path.removeprefix("results/")
            for path in self.folder.glob(re.sub(r"<\w+>", "*", pattern)):
                name = path.relative_to(self.folder).with_suffix("").as_posix().removeprefix("artifacts/")
                found[name] = path, kind
        return found


def open_results(folder: str | Path = "results") -> Results:
    """Open the results of a run. Raises NadpipeError if the folder has none."""
    results = Results(Path(folder))
    if not results.tables and not results.stores:
        raise NadpipeError(f"{folder}: has no results; make them with `nadpipe run`, or name another folder")
    return results
