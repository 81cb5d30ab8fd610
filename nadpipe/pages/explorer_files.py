"""Files of the explorer: static pages, and the data of all pairs in small files, which the pages load when needed.

Pages that are opened from disk may load scripts and images, but no JSON. Data files are therefore scripts that call `receive`
with their name and their content, and maps of where pairs fire are images.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int, Int8
from torch import Tensor

from nadpipe.circuit import activity
from nadpipe.circuit.unit_kinds import head_names
from nadpipe.data.views import read_image
from nadpipe.pages.pictures import crop_to_square, heat_image
from nadpipe.progress import track
from nadpipe.store.arrays import ZarrStore
from nadpipe.store.explorer import Extremes, FiringMaps
from nadpipe.store.kinds.features import VIEW_TABLE
from nadpipe.store.pool import Weights
from nadpipe.store.shards import join

_WEB = Path(__file__).parent / "web"
_PAGE = 100  # pairs per page of the ranking
_TEXTS = 256  # texts per file
_LISTED = 100  # pairs listed per text and naming rule

UnitTexts = dict[int, dict[str, list]]


@dataclasses.dataclass(frozen=True)
class Tables:
    """Tables of the units, sorted by their numbers; pairs by head and neuron."""

    pairs: pd.DataFrame
    neurons: pd.DataFrame
    heads: pd.DataFrame


class PairTexts:
    """The texts that name pairs, numbered in alphabetical order."""

    def __init__(self, assignments: pd.DataFrame, correlated: pd.DataFrame) -> None:
        """Number the texts of both tables. Texts by correlation become the naming rule `active`."""
        active = correlated.rename(columns={"correlation": "weight"}).assign(kind="active")
        columns = ["head", "neuron", "kind", "rank", "text", "weight"]
        table = pd.concat([active[columns], assignments[columns]], ignore_index=True)
        self.texts: list[str] = sorted(table["text"].unique())
        self.number = {text: number for number, text in enumerate(self.texts)}
        table["text"] = table["text"].map(self.number).astype(int)
        self.table = table.sort_values(["neuron", "head", "rank"], kind="stable", ignore_index=True)

    def of_neuron(self, neuron: int) -> UnitTexts:
        """Return text numbers and weights of a neuron's pairs, by head and naming rule, best first."""
        start, stop = np.searchsorted(self.table["neuron"], [neuron, neuron + 1])
        by_head: UnitTexts = {}
        columns = (self.table[name].iloc[start:stop].tolist() for name in ("head", "kind", "text", "weight"))
        for head, kind, text, weight in zip(*columns, strict=True):
            by_head.setdefault(head, {}).setdefault(kind, []).append([text, _round(weight)])
        return by_head

    def chunks(self, pairs: pd.DataFrame) -> Iterator[tuple[int, UnitTexts]]:
        """Yield the number of each file of texts, and the pairs of its texts by naming rule, largest weight first."""
        ranks = pairs.set_index(["head", "neuron"])["contribution_rank"]
        table = self.table.assign(size=self.table["weight"].abs()).sort_values("size", ascending=False, kind="stable")
        table = table.groupby(["text", "kind"], sort=False).head(_LISTED)
        table["place"] = ranks.loc[list(zip(table["head"], table["neuron"], strict=True))].to_numpy()
        for chunk, rows in table.groupby(table["text"] // _TEXTS):
            by_text: UnitTexts = {}
            columns = (rows[name].tolist() for name in ("text", "kind", "head", "neuron", "weight", "place"))
            for text, kind, head, neuron, weight, place in zip(*columns, strict=True):
                by_text.setdefault(text, {}).setdefault(kind, []).append([head, neuron, _round(weight), place])
            yield int(chunk), by_text


def write_pages(
    folder: Path,
    weights: Weights,
    tables: Tables,
    texts: PairTexts,
    extremes: Extremes,
    maps: FiringMaps,
    image_id: Int[np.ndarray, " view"],
) -> None:
    """Copy the static pages and write the data of all texts, pairs, heads and neurons. The folder must not exist."""
    readout = weights.readout
    shutil.copytree(_WEB, folder)
    data = folder / "data"
    sizes = {
        "architecture": weights.model.architecture,
        "sha256": weights.model.model,
        "heads": readout.heads,
        "names": head_names(readout.layer.tolist()),
        "neurons": readout.neurons,
        "grid": weights.grid,
        "images": len(image_id),
        "shown": extremes.views.shape[2] // 2,
        "page": _PAGE,
        "texts": _TEXTS,
    }
    _write_data(data, "about", sizes)
    _write_data(data, "texts", texts.texts)
    for chunk, pairs in texts.chunks(tables.pairs):
        _write_data(data, f"texts/{chunk}", pairs)
    _write_rankings(data, tables, texts, readout.heads)
    _write_neurons(data, tables, texts, extremes, maps, image_id, weights)


def write_images(
    folder: Path,
    manifest: pd.DataFrame,
    image_id: Int[np.ndarray, " view"],
    views: Int[np.ndarray, "head neuron shown"],
    firing: Sequence[ZarrStore],
    side: int,
) -> None:
    """Write a thumbnail of each shown image's crop, as the model saw it, and the images' file names, labels and groups."""
    data = folder / "data"
    (data / "images").mkdir()
    columns = [join(firing, name).tolist() for name in VIEW_TABLE]
    crops = {image: crop for image, *crop in zip(*columns, strict=True)}
    metadata = {}
    for image in track(image_id[np.unique(views)].tolist(), "drawing images", "image"):
        row = manifest.loc[image]
        top, left, size, height, width = crops[image]
        crop = crop_to_square(read_image(row["path"], row["sha256"]), top, left, size, height, width, side)
        crop.save(data / "images" / f"{image}.jpg", quality=85)
        metadata[image] = {"file": Path(row["path"]).name, "label": row["label"], "group": row["group"]}
    _write_data(data, "images", metadata)


def _write_rankings(data: Path, tables: Tables, texts: PairTexts, heads: int) -> None:
    """Write the pairs by rank in files of one page each, and all pairs of each head."""
    rows = _ranking_rows(tables.pairs, texts)
    order = np.argsort(tables.pairs["contribution_rank"].to_numpy())
    for page, start in enumerate(range(0, len(order), _PAGE)):
        _write_data(data, f"ranked/{page}", [rows[index] for index in order[start : start + _PAGE]])
    head_of_pair = tables.pairs["head"].to_numpy()[order]
    abouts = _summaries(tables.heads)
    for head in range(heads):
        pairs = [rows[index] for index in order[head_of_pair == head]]
        _write_data(data, f"heads/{head}", {"about": abouts[head], "pairs": pairs})


def _write_neurons(
    data: Path,
    tables: Tables,
    texts: PairTexts,
    extremes: Extremes,
    maps: FiringMaps,
    image_id: Int[np.ndarray, " view"],
    weights: Weights,
) -> None:
    """Write one file per neuron with all its pairs, and one image with their maps on one scale per pair."""
    (data / "firing").mkdir()
    abouts, summaries = _summaries(tables.neurons), _summaries(tables.pairs)
    names = ("coefficient_mean", "coefficient_std", "write_norm", "sign")
    means, stds, writes, signs = (tables.pairs[name].tolist() for name in names)
    for neuron in track(range(weights.readout.neurons), "writing neurons", "neuron"):
        texts_by_head = texts.of_neuron(neuron)
        steps, scale = activity.share_scale(maps.steps[:, neuron], maps.scale[:, neuron])
        pairs = []
        for head in range(weights.readout.heads):
            row = head * weights.readout.neurons + neuron
            pair = {
                "head": head,
                "mean": _round(means[row]),
                "std": _round(stds[row]),
                "write": _round(writes[row]),
                "sign": int(signs[row]),
                "texts": texts_by_head.get(head, {}),
                "images": image_id[extremes.views[head, neuron]].tolist(),
                "values": [_round(value) for value in extremes.values[head, neuron].tolist()],
                "scale": _round(float(scale[head])),
                "reach": [_round(value) for value in extremes.range[head, neuron].tolist()],
                "counts": extremes.counts[head, neuron].tolist(),
            }
            pairs.append(summaries[row] | pair)
        _write_data(data, f"neurons/{neuron}", {"about": abouts[neuron], "pairs": pairs})
        heat_image(_tile(steps, weights.grid)).save(data / "firing" / f"{neuron}.png")


def _ranking_rows(pairs: pd.DataFrame, texts: PairTexts) -> list[list]:
    """Return one list per pair: head, neuron, rank, size, and the numbers of its active and nearest texts (-1 for none)."""
    columns = [pairs[name].tolist() for name in ("head", "neuron", "contribution_rank")]
    columns.append([_round(value) for value in pairs["std_norm"].tolist()])
    columns += [[texts.number.get(text, -1) for text in pairs[name].tolist()] for name in ("active_text", "nearest_text")]
    return [list(row) for row in zip(*columns, strict=True)]


def _summaries(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the values that the pages show for every kind of unit, per row of its table."""
    explained = table[[name for name in table.columns if name.startswith("explained")]].to_numpy().tolist()
    columns = (table["contribution_rank"].tolist(), table["std_norm"].tolist(), explained)
    return [
        {"rank": int(rank), "size": _round(size), "explained": [_round(share) for share in shares]}
        for rank, size, shares in zip(*columns, strict=True)
    ]


def _round(value: float | np.floating) -> float | None:
    """Return the value with four significant digits, which is enough to show, or None for a value that is not finite."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _write_data(data: Path, name: str, content: Any) -> None:
    """Write the script data/<name>.js, which passes the content to the pages."""
    path = data / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'receive("{name}",{json.dumps(content, ensure_ascii=False, separators=(",", ":"))});', encoding="utf-8")


def _tile(steps: Int8[Tensor, "head shown spatial"], grid: int) -> Int8[np.ndarray, "height width"]:
    """Return maps next to each other: a row of maps per head, and a column per image shown."""
    heads, shown, _ = steps.shape
    return steps.numpy().reshape(heads, shown, grid, grid).swapaxes(1, 2).reshape(heads * grid, shown * grid)
