"""Sections of the report: each function reads tables of a finished run and returns the content of its section."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert

from nadpipe.circuit.shift import sort_groups
from nadpipe.circuit.unit_kinds import head_names
from nadpipe.data.views import read_image
from nadpipe.errors import NadpipeError
from nadpipe.pages import charts
from nadpipe.pages.charts import Chart
from nadpipe.pages.html import image_source, render_template
from nadpipe.pages.pictures import shrink
from nadpipe.pages.shift_texts import (
    describe_concepts,
    describe_order,
    describe_pairs,
    describe_trends,
    describe_untested,
    group_by_text,
)
from nadpipe.store.checksums import read_sealed
from nadpipe.store.kinds.analyses import LEDGER, RECONSTRUCTION, SPARSITY
from nadpipe.store.kinds.images import IMAGES
from nadpipe.store.kinds.segmentation import PER_CLASS, REGISTERS, SEGMENTATION, SHARES
from nadpipe.store.kinds.shift import DISCOVERED, SHIFT
from nadpipe.store.kinds.units import LAYER_COLUMNS, UNIT_TABLES
from nadpipe.store.manifest import read_images
from nadpipe.store.png import read_png
from nadpipe.store.results import read_csv
from nadpipe.store.tables import read_parquet

Charts = dict[str, Chart]

_LARGEST = 10  # pairs in the table of the largest pairs
_OVERLAYS = 3  # per data set
_CLASSES = 20  # in a table of shares
_OVERLAY_SIDE = 1400  # pixels
_TEXTS = 10  # texts in the table of shifted pairs
_PICTURED = 3  # images of the reference, and of the group, per text
_THUMBNAIL_SIDE = 96  # pixels
_SINK_NEURONS = 8


def render_report(
    results: Path,
    largest_residual: float,
    segmented: Sequence[str] = (),
    concepts: Sequence[str] = (),
    missing: Mapping[str, str] | None = None,
    unmasked: Mapping[str, str] | None = None,
    copy: tuple[str, str] | None = None,
) -> str:
    """Return the report as one HTML page that needs no other file.

    results: folder of a finished run. largest_residual: largest relative error of the sums over pairs. segmented: data sets
    with label maps. concepts: scored concepts in the order to show. missing: needs that the config does not meet
    (`nadpipe.needs`), each with what to do. unmasked: segmented data sets without masks, each with what to do. copy: as in
    `read_images`.
    """
    missing = missing or {}
    run = _run(results, largest_residual)
    small_group = run["config"]["shift"]["small_group"]
    units, specifications = _units(results)
    registers, register_charts = _registers(results)
    specifications |= register_charts
    sparsity, segmentation, concept_shift, pair_shift = None, None, None, None
    if "labels" not in missing:
        sparsity, charts_of_labels = _fidelity(results)
        specifications |= charts_of_labels
    if "segmentation" not in missing:
        segmentation, segmentation_charts = _segmentation(results, segmented, unmasked or {})
        specifications |= segmentation_charts
    if "groups" not in missing:
        pair_shift = _pair_shift(results, small_group, copy)
        if "concepts" not in missing:
            concept_shift, shift_charts = _concept_shift(results, concepts, small_group)
            specifications |= shift_charts
    return render_template(
        "report.html.j2",
        {"share": _share, "number": _number, "percent": _percent},
        run=run,
        times=_times(results / "benchmarks"),
        units=units,
        sparsity=sparsity,
        segmentation=segmentation,
        concepts=concept_shift,
        shift=pair_shift,
        missing=missing,
        registers=registers,
        skipped=_skipped(results),
        vega=vl_convert.javascript_bundle(),  # type: ignore[call-arg]  # the stub lacks the default
        charts={name: _script(chart) for name, chart in specifications.items()},
    )


def _run(results: Path, largest_residual: float) -> dict[str, Any]:
    """Return the provenance of the run, its settings as text, and the largest error of the sums over pairs."""
    path = results / "provenance.json"
    try:
        provenance = json.loads(read_sealed(path))
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
    """Return the largest pairs, and a chart of how much of each unit its directions explain."""
    tables = {kind.name: read_parquet(results / f"{kind.name}.parquet", kind) for kind in UNIT_TABLES.values()}
    largest = tables["pairs"].nsmallest(_LARGEST, "contribution_rank")
    heads = tables["heads"].sort_values("head")
    layer = heads["layer"].tolist() if set(LAYER_COLUMNS) <= set(heads) else [0] * len(heads)
    ledger = read_csv(results / "ledger.csv", LEDGER)
    pairs = ledger[ledger["part"] == "pairs"]
    content = {
        "largest": largest.to_dict("records"),
        "count": len(tables["pairs"]),
        "names": head_names(layer),
        "rest": not set(ledger["part"]) <= {"pairs", "constants"},
        "energy": pairs["energy"].sum(),
        "variance": pairs["variance"].sum(min_count=1),
    }
    return content, {"explained": charts.explained_chart(tables)}


def _fidelity(results: Path) -> tuple[list[dict[str, Any]], Charts]:
    """Return mean accuracy per ranking and share kept, and charts of accuracy with few directions and few units."""
    reconstruction = read_csv(results / "reconstruction.csv", RECONSTRUCTION)
    by_components = charts.accuracy_chart(reconstruction, "components", "unit", "directions of each unit", log=False)
    table = read_csv(results / "sparsity.csv", SPARSITY)
    table["kept"] += " " + table["unit"] + "s"
    means = table.groupby(["kept", "share"], sort=False)[["pairs", "energy", "accuracy"]].mean()
    chart = charts.accuracy_chart(table, "share", "kept", "share of the units that are kept", log=True)
    return means.reset_index().to_dict("records"), {"sparsity": chart, "reconstruction": by_components}


def _segmentation(results: Path, segmented: Sequence[str], unmasked: Mapping[str, str]) -> tuple[list[dict[str, Any]], Charts]:
    """Return the shares of each data set, its scores by method if it has masks, and some overlays; and charts of the scores."""
    shares = _name_variants(read_csv(results / "shares.csv", SHARES))
    sections: list[dict[str, Any]] = []
    specifications: Charts = {}
    for dataset in segmented:
        paths = sorted((results / "segmentation" / dataset / "overlays").glob("*.png"))[:_OVERLAYS]
        pictures = [{"name": path.stem, "source": _overlay(path)} for path in paths]
        shared = _shares(shares[shares["dataset"] == dataset])
        sections.append(
            {"dataset": dataset, "lacking": unmasked.get(dataset), "methods": [], "shares": shared, "pictures": pictures}
        )
    scored = [section for section in sections if section["lacking"] is None]
    if scored:
        scores = _name_variants(read_csv(results / "segmentation.csv", SEGMENTATION))
        classes = _name_variants(read_parquet(results / "segmentation" / "per_class.parquet", PER_CLASS))
        for section in scored:
            dataset = section["dataset"]
            methods = scores[scores["dataset"] == dataset]
            section["methods"] = methods.to_dict("records")
            specifications[f"miou-{dataset}"] = charts.miou_chart(methods)
            specifications[f"classes-{dataset}"] = charts.per_class_chart(classes[classes["dataset"] == dataset])
    return sections, specifications


def _shares(table: pd.DataFrame) -> dict[str, Any]:
    """Return the mean shares of a data set's largest classes: one row per class, with one share per method."""
    by_class = table.pivot(index="class", columns="name", values="share")[list(dict.fromkeys(table["name"]))]
    largest = by_class.loc[by_class.mean(axis=1).sort_values(ascending=False, kind="stable").index[:_CLASSES]]
    rows = [{"title": title, "shares": row.tolist()} for title, row in largest.iterrows()]
    return {"names": list(by_class.columns), "rows": rows, "classes": len(by_class), "images": int(table["images"].iloc[0])}


def _name_variants(table: pd.DataFrame) -> pd.DataFrame:
    """Add the column `name`: the method, with its k if the run has several."""
    swept = table.groupby("method")["k"].transform("nunique") > 1
    suffix = table["k"].map(lambda k: "" if pd.isna(k) else f" k {k:.0f}")
    return table.assign(name=table["method"].astype(str) + suffix.where(swept, ""))


def _concept_shift(results: Path, concepts: Sequence[str], small_group: int) -> tuple[dict[str, Any], Charts]:
    """Return what the tests of concepts found, in sentences and rows, and a chart of concepts over groups."""
    table = read_csv(results / "shift.csv", SHIFT)
    table["concept"] = pd.Categorical(table["concept"], categories=list(concepts) or table["concept"].unique())
    projections = table[table["score"] == "projection"].sort_values("concept", kind="stable")
    projections = projections.assign(concept=projections["concept"].astype(str))
    content = {
        "rows": projections.groupby("concept", sort=False).tail(1).to_dict("records"),
        "found": describe_concepts(projections),
        "trends": describe_trends(projections),
        "untested": describe_untested(projections, small_group, projections["group"].unique().tolist()),
    }
    return content, {"shift": charts.shift_chart(projections)}


def _pair_shift(results: Path, small_group: int, copy: tuple[str, str] | None) -> dict[str, Any]:
    """Return what the tests of pairs found, in sentences and rows."""
    discovered = read_parquet(results / "shift" / "discovered.parquet", DISCOVERED)
    signs = read_parquet(results / "pairs.parquet", UNIT_TABLES["pair"], columns=["head", "neuron", "sign"])
    manifest = read_images(results / "artifacts" / "monitoring" / "images.parquet", copy).set_index("image_id")
    groups = manifest["group"].unique().tolist()
    order = sort_groups(groups)
    shifted = group_by_text(discovered, signs.set_index(["head", "neuron"])["sign"], order)
    rows = shifted.head(_TEXTS).to_dict("records")
    for row in rows:
        for name in ("reference_images", "images"):
            row[name] = [(image_id, _thumbnail(manifest.loc[image_id])) for image_id in row[name][:_PICTURED]]
    return {
        "pairs": rows,
        "texts": len(shifted),
        "order": describe_order(groups, order),
        "pairs_found": describe_pairs(discovered, order),
        "pairs_untested": describe_untested(discovered, small_group, order),
    }


def _registers(results: Path) -> tuple[dict[str, Any], Charts]:
    """Return the attention sink and the neurons that its attention depends on, and a chart of attention per token."""
    table = read_parquet(results / "registers.parquet", REGISTERS)
    tokens = table[table["kind"] == "token"].sort_values("index")
    side = round(len(tokens) ** 0.5)
    attention = tokens["attention"].to_numpy(float).reshape(side, side)
    sinks = tokens.loc[tokens["sink"].astype(bool), "index"].tolist()
    sink = sinks[0] if sinks else None
    neurons = table[table["kind"] == "neuron"].nsmallest(_SINK_NEURONS, "rank")
    content = {
        "sink": sink,
        "neurons": neurons.to_dict("records"),
        "zeroed": neurons["attention_drop"].notna().any(),
        "strongest": int(attention.argmax()),
    }
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
    return image_source(shrink(read_png(path).convert("RGB"), _OVERLAY_SIDE), "WEBP", quality=80)


def _thumbnail(row: pd.Series) -> str:
    return image_source(shrink(read_image(row["path"], row["sha256"]), _THUMBNAIL_SIDE), "JPEG", quality=80)


def _script(chart: Mapping[str, Any]) -> str:
    """Return a chart as JSON without `<`, so that no text in it can end the script element around it or start a comment."""
    return json.dumps(chart, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _share(value: float) -> str:
    return "–" if pd.isna(value) else f"{100 * value:.1f}%"


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _number(value: float, digits: int = 3) -> str:
    return "–" if pd.isna(value) else f"{value:.{digits}g}"
