"""Build the pair explorer: static pages over all pairs, their data in small files that are loaded as they are looked at."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from nadpipe import attnpool, explorer
from nadpipe.artifacts import VIEW_TABLE, ZarrStore, open_zarr, read_images, read_parquet, whole
from nadpipe.attnpool import AttentionPool
from nadpipe.errors import NadpipeError
from nadpipe.inputs import open_shards, read_pool
from nadpipe.pictures import crop_to_square
from nadpipe.progress import track
from nadpipe.views import read_image

WEB = Path(__file__).parents[1] / "web"
_PAGE = 100  # pairs on a page of the ranking
_TEXTS = 256  # whose pairs share a file
_MOST = 100  # pairs listed for a text and a way of naming
_BINS = 24


def build_explorer(
    images: Path,
    features: tuple[Path, ...],
    contributions: tuple[Path, ...],
    directions: Path,
    pairs: Path,
    neurons: Path,
    heads: Path,
    assignments: Path,
    correlated: Path,
    attnpool_store: Path,
    output: Path,
    shown: int = 4,
    thumbnail: int = 160,
    copy: tuple[str, str] | None = None,
) -> None:
    """Write a folder that any static file server can serve; index.html is the entry.

    Args:
        images: Manifest of the discovery images.
        features: All shards of the discovery features.
        contributions: All shards of the discovery contributions.
        directions: Directions of the pairs, for their signs.
        pairs: Table of the pairs.
        neurons: Table of the neurons.
        heads: Table of the heads.
        assignments: Texts of the pairs, by direction.
        correlated: Texts of the pairs, by their images.
        attnpool_store: Exported attention pool.
        output: Folder.
        shown: Images shown of each end of a pair.
        thumbnail: Side of an image, in pixels.
        copy: The folder that the manifest says its images lie in, and where a copy of it is, if they are read from a copy.
    """
    pool, model = read_pool(attnpool_store)
    seen = open_shards(features, "features", model)
    made = open_shards(contributions, "contributions", model)
    image_id = np.concatenate([store["image_id"][:] for store in made])
    if [*np.concatenate([store["image_id"][:] for store in seen])] != [*image_id]:
        raise NadpipeError(f"{features[0]}: is of other images than {contributions[0]}; give shards of one data set")
    sign = open_zarr(directions, "pair directions", model)["sign"][:]
    table = read_parquet(pairs, "pairs", model).sort_values(["head", "neuron"], ignore_index=True)
    names = _Names(read_parquet(assignments, "pair assignments", model), read_parquet(correlated, "pair correlations", model))
    ends, values, counts, reach = _ends(made, torch.from_numpy(sign), shown)
    maps, scale = _maps(seen, made, pool, ends, torch.from_numpy(sign).float())
    with whole(output) as folder:
        shutil.copytree(WEB, folder)
        data = folder / "data"
        about = {
            "architecture": model.architecture,
            "sha256": model.model,
            "heads": pool.heads,
            "neurons": pool.neurons,
            "grid": pool.grid,
            "images": len(image_id),
            "shown": shown,
            "page": _PAGE,
            "texts": _TEXTS,
        }
        _write(data / "about.json", about)
        _write(data / "texts.json", names.texts)
        for chunk, listed in names.chunks(table):
            _write(data / "texts" / f"{chunk}.json", listed)
        rows = _rows(table, names)
        order = np.argsort(table["contribution_rank"].to_numpy())
        for page, start in enumerate(range(0, len(order), _PAGE)):
            _write(data / "ranked" / f"{page}.json", [rows[at] for at in order[start : start + _PAGE]])
        heads_table = read_parquet(heads, "heads", model).set_index("head")
        for head in range(pool.heads):
            own = [rows[at] for at in order[table["head"].to_numpy()[order] == head]]
            _write(data / "heads" / f"{head}.json", {"about": _unit(heads_table.loc[head]), "pairs": own})
        neurons_table = read_parquet(neurons, "neurons", model).set_index("neuron")
        for neuron in track(range(pool.neurons), "writing neurons", "neuron"):
            texts, own = names.of_neuron(neuron), []
            for head in range(pool.heads):
                row = table.iloc[head * pool.neurons + neuron]
                own.append(
                    _unit(row)
                    | {
                        "head": head,
                        "mean": _number(row["coefficient_mean"]),
                        "std": _number(row["coefficient_std"]),
                        "write": _number(row["write_norm"]),
                        "sign": int(row["sign"]),
                        "texts": texts.get(head, {}),
                        "images": image_id[ends[head, neuron]].tolist(),
                        "values": [_number(value) for value in values[head, neuron]],
                        "scale": [_number(value) for value in scale[head, neuron]],
                        "reach": [_number(value) for value in reach[head, neuron]],
                        "counts": counts[head, neuron].tolist(),
                    }
                )
            _write(data / "neurons" / f"{neuron}.json", {"about": _unit(neurons_table.loc[neuron]), "pairs": own})
            (data / "firing").mkdir(exist_ok=True)
            (data / "firing" / f"{neuron}.bin").write_bytes(maps[:, neuron].numpy().tobytes())
        _write_images(read_images(images, copy).set_index("image_id"), image_id[np.unique(ends)], seen, data, thumbnail)


def _ends(made: Sequence[ZarrStore], sign: torch.Tensor, shown: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of all pairs (head, neuron, …): views at the ends of their coefficients along the direction, these, their histogram, and
    what it reaches from and to."""
    found = []
    for head in track(range(len(sign)), "ranking images", "head"):
        value = torch.from_numpy(np.concatenate([store["coefficient"][:, head] for store in made])).float() * sign[head]
        ends = explorer.end_images(value, shown)
        low, high = value.amin(0), value.amax(0)
        counts = explorer.histogram(value, low, high, _BINS)
        found.append((ends, value.T.gather(1, ends), counts, torch.stack([low, high], dim=1)))
    return tuple(torch.stack(part).numpy() for part in zip(*found, strict=True))


def _maps(
    seen: Sequence[ZarrStore], made: Sequence[ZarrStore], pool: AttentionPool, ends: np.ndarray, sign: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where pairs fire along their directions in the views at their ends: bytes (head, neuron, shown, spatial), their scale."""
    maps = torch.zeros(*ends.shape, pool.tokens - 1, dtype=torch.int8)
    scale = torch.zeros(ends.shape)
    by_view = np.argsort(ends, axis=None, kind="stable")
    starts = np.searchsorted(ends.ravel()[by_view], np.arange(sum(store["image_id"].shape[0] for store in made) + 1))
    view = 0
    progress = iter(track(range(len(starts) - 1), "mapping pairs", "image"))
    for features, contributions in zip(seen, made, strict=True):
        for row in range(features["activation"].shape[0]):
            next(progress)
            where = by_view[starts[view] : starts[view + 1]]
            view += 1
            if not len(where):
                continue
            head, neuron, slot = map(torch.from_numpy, np.unravel_index(where, ends.shape))
            x = attnpool.tokens(torch.from_numpy(features["activation"][row]).float()[None], pool)[0]
            attention = torch.from_numpy(contributions["attention"][row]).float()
            where_to = explorer.firing(attention, x, head, neuron) * sign[head, neuron, None]
            maps[head, neuron, slot], scale[head, neuron, slot] = explorer.as_bytes(where_to)
    next(progress, None)
    return maps, scale


class _Names:
    """Texts of pairs, by number."""

    def __init__(self, by_direction: pd.DataFrame, by_images: pd.DataFrame) -> None:
        active = by_images.rename(columns={"correlation": "weight"}).assign(kind="active")
        columns = ["head", "neuron", "kind", "rank", "text", "weight"]
        self.table = pd.concat([active[columns], by_direction[columns]], ignore_index=True)
        self.texts = sorted(self.table["text"].unique())
        self.number = {text: at for at, text in enumerate(self.texts)}
        self.table["text"] = self.table["text"].map(self.number).astype(int)
        self.table = self.table.sort_values(["neuron", "head", "rank"], kind="stable", ignore_index=True)

    def of_neuron(self, neuron: int) -> dict[int, dict[str, list]]:
        """Of each head's pair with a neuron and each way of naming: numbers of texts with their weights, best first."""
        start, stop = np.searchsorted(self.table["neuron"], [neuron, neuron + 1])
        found: dict[int, dict[str, list]] = {}
        columns = (self.table[name].iloc[start:stop].tolist() for name in ("head", "kind", "text", "weight"))
        for head, kind, text, weight in zip(*columns, strict=True):
            found.setdefault(head, {}).setdefault(kind, []).append([text, _number(weight)])
        return found

    def chunks(self, pairs: pd.DataFrame) -> Iterator[tuple[int, dict[int, dict[str, list]]]]:
        """Files of texts: of each text and way of naming the pairs, those that fit it best first."""
        ranks = pairs.set_index(["head", "neuron"])["contribution_rank"]
        table = self.table.assign(size=self.table["weight"].abs()).sort_values("size", ascending=False, kind="stable")
        table = table.groupby(["text", "kind"], sort=False).head(_MOST)
        table["place"] = ranks.loc[list(zip(table["head"], table["neuron"], strict=True))].to_numpy()
        for chunk, of_chunk in table.groupby(table["text"] // _TEXTS):
            listed: dict[int, dict[str, list]] = {}
            columns = (of_chunk[name].tolist() for name in ("text", "kind", "head", "neuron", "weight", "place"))
            for text, kind, head, neuron, weight, place in zip(*columns, strict=True):
                listed.setdefault(text, {}).setdefault(kind, []).append([head, neuron, _number(weight), place])
            yield int(chunk), listed


def _rows(table: pd.DataFrame, names: _Names) -> list[list]:
    """A line of a list for each pair: head, neuron, rank, size, and the number of its active and its nearest text."""
    columns = [table[name].tolist() for name in ("head", "neuron", "contribution_rank")]
    columns.append([_number(value) for value in table["std_norm"]])
    columns += [[names.number.get(text, -1) for text in table[name]] for name in ("active_text", "nearest_text")]
    return [list(row) for row in zip(*columns, strict=True)]


def _unit(row: pd.Series) -> dict[str, Any]:
    """What is told of every unit."""
    about = {"rank": int(row["contribution_rank"]), "size": _number(row["std_norm"])}
    return about | {"explained": [_number(row[name]) for name in row.index if name.startswith("explained")]}


def _write_images(manifest: pd.DataFrame, shown: np.ndarray, seen: Sequence[ZarrStore], data: Path, side: int) -> None:
    """Thumbnails of what the model saw of each image that is shown, and what is known of it."""
    (data / "images").mkdir()
    crop = {}
    for store in seen:
        columns = (store[name][:].tolist() for name in VIEW_TABLE)
        crop |= {image: box for image, *box in zip(*columns, strict=True)}
    known = {}
    for image_id in track(shown.tolist(), "drawing images", "image"):
        row = manifest.loc[image_id]
        crop_to_square(read_image(row["path"]), *crop[image_id], side).save(data / "images" / f"{image_id}.jpg", quality=85)
        known[image_id] = {"file": Path(row["path"]).name, "label": row["label"], "group": row["group"]}
    _write(data / "images.json", known)


def _number(value: float) -> float | None:
    """Four digits are enough to look at; what is not a number is null."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
