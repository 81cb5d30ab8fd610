"""Sections of the report: each function reads tables of a finished run and returns the content of its section."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert
from PIL import Image

from nadpipe.data.views import read_image
from nadpipe.errors import NadpipeError
from nadpipe.pages import charts
from nadpipe.pages.charts import Chart
from nadpipe.pages.html import image_source, render_template
from nadpipe.pages.pictures import shrink
from nadpipe.store.kinds.analyses import RECONSTRUCTION, SPARSITY
from nadpipe.store.kinds.images import IMAGES
from nadpipe.store.kinds.segmentation import PER_CLASS, REGISTERS, SEGMENTATION
from nadpipe.store.kinds.shift import DISCOVERED, SHIFT
from nadpipe.store.kinds.units import UNIT_TABLES
from nadpipe.store.manifest import read_images
from nadpipe.store.results import read_csv
from nadpipe.store.tables import read_parquet

Charts = dict[str, Chart]

_LARGEST = 10  # pairs in the table of the largest pairs
_OVERLAYS = 3  # per data set
_OVERLAY_SIDE = 1400  # pixels
_DISCOVERED = 15  # pairs in the table of the largest shifts
_PICTURED = 6  # pairs of this table that are shown with images
_THUMBNAIL_SIDE = 96  # pixels
_SINK_NEURONS = 8


def render_report(
    results: Path,
    largest_residual: float,
    segmented: Sequence[str] = (),
    concepts: Sequence[str] = (),
    copy: tuple[str, str] | None = None,
) -> str:
    """Return the report as one HTML page that needs no other file.

    results: folder of a finished run. largest_residual: largest relative error of the sums over pairs. segmented: data sets
    with label maps. concepts: scored concepts in the order to show. copy: as in `read_images`.
    """
    units, unit_charts = _units(results)
    sparsity, sparsity_charts = _sparsity(results)
    segmentation, segmentation_charts = _segmentation(results, segmented)
    shift, shift_charts = _shift(results, concepts, copy)
    registers, register_charts = _registers(results)
    specifications = unit_charts | sparsity_charts | segmentation_charts | shift_charts | register_charts
    return render_template(
        "report.html.j2",
        {"share": _share, "number": _number},
        run=_run(results, largest_residual),
        times=_times(results / "benchmarks"),
        units=units,
        sparsity=sparsity,
        segmentation=segmentation,
        shift=shift,
        registers=registers,
        skipped=_skipped(results),
        vega=vl_convert.javascript_bundle(),  # type: ignore[call-arg]  # the stub lacks the default
        charts={name: _script(chart) for name, chart in specifications.items()},
    )


def _run(results: Path, largest_residual: float) -> dict[str, Any]:
    """Return the provenance of the run, its settings as text, and the largest error of the sums over pairs."""
    path = results / "provenance.json"
    try:
        provenance = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NadpipeError(f"{path}: not readable ({error}); make it with Snakemake") from None
    settings = json.dumps(provenance["config"], indent=1, ensure_ascii=False)
    return provenance | {"error": largest_residual, "settings": settings}


def _times(folder: Path) -> list[dict[str, Any]]:
    """Return jobs, seconds and peak memory per rule from Snakemake's benchmark files, longest first."""
    tables = [
        pd.read_csv(path, sep="\t", na_values="-").assign(rule=path.relative_to(folder).parts[0].removesuffix(".tsv"))
        for path in sorted(folder.rglob("*.tsv"))
        if path.stat().st_size  # the file of a running job is empty
    ]
    if not tables:
        return []
    rules = pd.concat(tables).groupby("rule").agg(jobs=("s", "size"), seconds=("s", "sum"), memory=("max_rss", "max"))
    return rules.sort_values("seconds", ascending=False).reset_index().to_dict("records")


def _units(results: Path) -> tuple[dict[str, Any], Charts]:
    """Return the largest pairs, and charts of how much of each unit its directions explain."""
    tables = {kind.name: read_parquet(results / f"{kind.name}.parquet", kind) for kind in UNIT_TABLES.values()}
    reconstruction = read_csv(results / "reconstruction.csv", RECONSTRUCTION)
    specifications = {
        "explained": charts.explained_chart(tables),
        "reconstruction": charts.accuracy_chart(reconstruction, "components", "unit", "directions of each unit", log=False),
    }
    largest = tables["pairs"].nsmallest(_LARGEST, "contribution_rank")
    return {"largest": largest.to_dict("records"), "count": len(tables["pairs"])}, specifications


def _sparsity(results: Path) -> tuple[list[dict[str, Any]], Charts]:
    """Return mean accuracy per ranking and share kept, and its chart."""
    table = read_csv(results / "sparsity.csv", SPARSITY)
    table["kept"] += " " + table["unit"] + "s"
    means = table.groupby(["kept", "share"], sort=False)[["pairs", "energy", "accuracy"]].mean()
    chart = charts.accuracy_chart(table, "share", "kept", "share of the units that are kept", log=True)
    return means.reset_index().to_dict("records"), {"sparsity": chart}


def _segmentation(results: Path, segmented: Sequence[str]) -> tuple[list[dict[str, Any]], Charts]:
    """Return the scores of each data set by method with some overlays, and charts of the scores."""
    scores = _name_variants(read_csv(results / "segmentation.csv", SEGMENTATION))
    classes = _name_variants(read_parquet(results / "segmentation" / "per_class.parquet", PER_CLASS))
    sections, specifications = [], {}
    for dataset in segmented:
        methods = scores[scores["dataset"] == dataset]
        specifications[f"miou-{dataset}"] = charts.miou_chart(methods)
        specifications[f"classes-{dataset}"] = charts.per_class_chart(classes[classes["dataset"] == dataset])
        paths = sorted((results / "segmentation" / dataset / "overlays").glob("*.png"))[:_OVERLAYS]
        pictures = [{"name": path.stem, "source": _overlay(path)} for path in paths]
        sections.append({"dataset": dataset, "methods": methods.to_dict("records"), "pictures": pictures})
    return sections, specifications


def _name_variants(table: pd.DataFrame) -> pd.DataFrame:
    """Add the column `name`: the method, with its k if the run has several."""
    swept = table.groupby("method")["k"].transform("nunique") > 1
    suffix = table["k"].map(lambda k: "" if pd.isna(k) else f" k {k:.0f}")
    return table.assign(name=table["method"].astype(str) + suffix.where(swept, ""))


def _shift(results: Path, concepts: Sequence[str], copy: tuple[str, str] | None) -> tuple[dict[str, Any], Charts]:
    """Return each concept's row for the last group and the pairs that shifted most, and a chart of concepts over groups."""
    table = read_csv(results / "shift.csv", SHIFT, text=("group", "reference"))
    table["concept"] = pd.Categorical(table["concept"], categories=list(concepts) or table["concept"].unique())
    projections = table[table["score"] == "projection"].sort_values("concept", kind="stable")
    chart = charts.shift_chart(projections.assign(concept=projections["concept"].astype(str)))
    last = projections.groupby("concept", observed=True).tail(1)
    discovered = read_parquet(results / "shift" / "discovered.parquet", DISCOVERED)
    paths = read_images(results / "artifacts" / "monitoring" / "images.parquet", copy).set_index("image_id")["path"]
    rows = discovered.head(_DISCOVERED).to_dict("records")
    for position, row in enumerate(rows):
        row["pictures"] = [_thumbnail(paths.loc[image_id]) for image_id in row["images"]] if position < _PICTURED else []
    moved = int((discovered["q"] < 0.05).sum())
    return {"concepts": last.to_dict("records"), "discovered": rows, "moved": moved}, {"shift": chart}


def _registers(results: Path) -> tuple[dict[str, Any], Charts]:
    """Return the attention sink and the neurons that its attention depends on, and a chart of attention per token."""
    table = read_parquet(results / "registers.parquet", REGISTERS)
    tokens = table[table["kind"] == "token"].sort_values("index")
    side = round(len(tokens) ** 0.5)
    attention = tokens["attention"].to_numpy(float).reshape(side, side)
    sinks = tokens.loc[tokens["sink"].astype(bool), "index"].tolist()
    sink = sinks[0] if sinks else None
    neurons = table[table["kind"] == "neuron"].nlargest(_SINK_NEURONS, "attention_drop")
    content = {"sink": sink, "neurons": neurons.to_dict("records"), "strongest": int(attention.argmax())}
    return content, {"registers": charts.attention_chart(attention, sink)}


def _skipped(results: Path) -> list[dict[str, Any]]:
    """Return the images that could not be used, each with its data set and the reason."""
    rows = []
    for path in sorted((results / "artifacts").glob("*/images.parquet")):
        manifest = read_parquet(path, IMAGES)
        skipped = manifest[manifest["image_id"] < 0]
        rows += [{"dataset": path.parent.name, "problem": problem} for problem in skipped["problem"]]
    return rows


def _overlay(path: Path) -> str:
    with Image.open(path) as image:
        return image_source(shrink(image.convert("RGB"), _OVERLAY_SIDE), "WEBP", quality=80)


def _thumbnail(path: str) -> str:
    return image_source(shrink(read_image(path), _THUMBNAIL_SIDE), "JPEG", quality=80)


def _script(chart: Mapping[str, Any]) -> str:
    """Return a chart as JSON that cannot end the script element around it."""
    return json.dumps(chart, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")


def _share(value: float) -> str:
    return "–" if pd.isna(value) else f"{100 * value:.1f}%"


def _number(value: float, digits: int = 3) -> str:
    return "–" if pd.isna(value) else f"{value:.{digits}g}"
