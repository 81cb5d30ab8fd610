"""Make the report: one self-contained page of what a run found."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import vl_convert
from PIL import Image

from nadpipe import report
from nadpipe.artifacts import open_zarr, read_images, read_parquet, whole
from nadpipe.errors import NadpipeError
from nadpipe.pictures import shrink
from nadpipe.views import read_image

_WIDE = 1400  # pixels of an embedded picture
_OVERLAYS = 3  # of each data set
_DISCOVERED = 15  # pairs that moved most
_PICTURED = 6  # of these, with images
_THUMBNAIL = 96


def make_report(
    results: Path,
    contributions: tuple[Path, ...],
    output: Path,
    segmented: tuple[str, ...] = (),
    concepts: tuple[str, ...] = (),
    copy: tuple[str, str] | None = None,
) -> None:
    """Write a page that needs no network and no other file.

    Args:
        results: Folder of a run's results, with all final tables.
        contributions: Stores whose sums over pairs were held against the model.
        output: HTML file.
        segmented: Data sets that were segmented.
        concepts: Concepts that were scored, in the order to be shown.
        copy: The folder that the manifest says its images lie in, and where a copy of it is, if they are read from a copy.
    """
    charts: dict[str, dict[str, Any]] = {}
    content = {
        "run": _run(results, contributions),
        "times": _times(results / "benchmarks"),
        "units": _units(results, charts),
        "sparsity": _sparsity(results, charts),
        "segmentation": _segmentation(results, segmented, charts),
        "shift": _shift(results, concepts, charts, copy),
        "registers": _registers(results, charts),
        "skipped": _skipped(results),
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"share": _share, "number": _number}
    template = resources.files("nadpipe").joinpath("templates", "report.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        **content, vega=vl_convert.javascript_bundle(), charts={name: _embedded(chart) for name, chart in charts.items()}
    )
    with whole(output) as partial:
        partial.write_text(page, encoding="utf-8")


def _run(results: Path, contributions: Sequence[Path]) -> dict[str, Any]:
    """What was run, and how exact the sums over pairs are."""
    path = results / "provenance.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NadpipeError(f"{path}: not readable ({error}); make it with Snakemake") from None
    worst = max(float(open_zarr(store, "contributions")["residual"][:].max()) for store in contributions)
    return told | {"error": worst, "settings": json.dumps(told["config"], indent=1, ensure_ascii=False)}


def _times(folder: Path) -> list[dict[str, Any]]:
    """Jobs, seconds and largest memory of each rule, longest first, by Snakemake's own benchmarks."""
    found = [
        pd.read_csv(path, sep="\t", na_values="-").assign(rule=path.relative_to(folder).parts[0].removesuffix(".tsv"))
        for path in sorted(folder.rglob("*.tsv"))
        if path.stat().st_size  # a job that still runs has none yet
    ]
    if not found:
        return []
    table = pd.concat(found).groupby("rule").agg(jobs=("s", "size"), seconds=("s", "sum"), memory=("max_rss", "max"))
    return table.sort_values("seconds", ascending=False).reset_index().to_dict("records")


def _units(results: Path, charts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """How much of a unit its directions explain, and the largest pairs."""
    tables = {unit: read_parquet(results / f"{unit}.parquet", unit) for unit in ("pairs", "neurons", "heads")}
    charts["explained"] = report.explained_chart(tables)
    rebuilt = pd.read_csv(results / "reconstruction.csv")
    charts["reconstruction"] = report.accuracy_chart(rebuilt, "components", "unit", "directions of each unit", log=False)
    largest = tables["pairs"].nsmallest(10, "contribution_rank")
    return {"largest": largest.to_dict("records"), "count": len(tables["pairs"]), "reconstruction": rebuilt.to_dict("records")}


def _sparsity(results: Path, charts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    table = pd.read_csv(results / "sparsity.csv")
    table["kept"] += " " + table["unit"] + "s"
    charts["sparsity"] = report.accuracy_chart(table, "share", "kept", "share of the units that are kept", log=True)
    columns = ["pairs", "energy", "accuracy"]
    return table.groupby(["kept", "share"], sort=False)[columns].mean().reset_index().to_dict("records")


def _segmentation(results: Path, segmented: Sequence[str], charts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each data set: the table of methods, and pictures."""
    scores = _with_names(pd.read_csv(results / "segmentation.csv"))
    classes = _with_names(read_parquet(results / "segmentation" / "per_class.parquet", "per_class"))
    found = []
    for dataset in segmented:
        own = scores[scores["dataset"] == dataset]
        charts[f"miou-{dataset}"] = report.miou_chart(own)
        charts[f"classes-{dataset}"] = report.per_class_chart(classes[classes["dataset"] == dataset])
        drawn = sorted((results / "segmentation" / dataset / "overlays").glob("*.png"))[:_OVERLAYS]
        pictures = [{"name": path.stem, "source": _picture(path, _WIDE)} for path in drawn]
        found.append({"dataset": dataset, "methods": own.to_dict("records"), "pictures": pictures})
    return found


def _with_names(table: pd.DataFrame) -> pd.DataFrame:
    """With what a method is called where it is swept over k."""
    swept = table.groupby("method")["k"].transform("nunique") > 1
    numbers = table["k"].map(lambda k: "" if pd.isna(k) else f" k {k:.0f}")
    return table.assign(name=table["method"].astype(str) + numbers.where(swept, ""))


def _shift(
    results: Path, concepts: Sequence[str], charts: dict[str, dict[str, Any]], copy: tuple[str, str] | None
) -> dict[str, Any]:
    """Concepts over groups, and the pairs that moved most between the reference and the group that moved most of them."""
    table = pd.read_csv(results / "shift.csv", dtype={"group": str, "reference": str})
    table["concept"] = pd.Categorical(table["concept"], categories=list(concepts) or table["concept"].unique())
    signed = table[table["score"] == "projection"].sort_values("concept", kind="stable")
    charts["shift"] = report.shift_chart(signed.assign(concept=signed["concept"].astype(str)))
    last = signed.groupby("concept", observed=True).tail(1)
    found = read_parquet(results / "shift" / "discovered.parquet", "discovered")
    images = read_images(results / "artifacts" / "monitoring" / "images.parquet", copy).set_index("image_id")["path"]
    rows = found.head(_DISCOVERED).to_dict("records")
    for at, row in enumerate(rows):
        row["pictures"] = [_thumbnail(images.loc[image_id]) for image_id in row["images"]] if at < _PICTURED else []
    return {"concepts": last.to_dict("records"), "discovered": rows, "moved": int((found["q"] < 0.05).sum())}


def _registers(results: Path, charts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The attention of every spatial token, and the neurons without which the strongest loses most."""
    table = read_parquet(results / "registers.parquet", "registers")
    tokens = table[table["kind"] == "token"].sort_values("index")
    side = round(len(tokens) ** 0.5)
    attention = tokens["attention"].to_numpy(float).reshape(side, side)
    sinks = tokens.loc[tokens["sink"].astype(bool), "index"].tolist()
    charts["registers"] = report.attention_chart(attention, sinks[0] if sinks else None)
    neurons = table[table["kind"] == "neuron"].nlargest(8, "attention_drop")
    return {"sink": sinks[0] if sinks else None, "neurons": neurons.to_dict("records"), "strongest": int(np.argmax(attention))}


def _skipped(results: Path) -> list[dict[str, Any]]:
    """Images that could not be used, with the reason."""
    rows = []
    for path in sorted((results / "artifacts").glob("*/images.parquet")):
        manifest = read_parquet(path, "images")
        bad = manifest[manifest["image_id"] < 0]
        rows += [{"dataset": path.parent.name, "problem": problem} for problem in bad["problem"]]
    return rows


def _picture(path: Path, longest: int) -> str:
    with Image.open(path) as image:
        return _source(shrink(image.convert("RGB"), longest), "WEBP", quality=80)


def _thumbnail(path: str) -> str:
    return _source(shrink(read_image(path), _THUMBNAIL), "JPEG", quality=80)


def _source(image: Image.Image, form: str, **options: int) -> str:
    """A picture as an address that holds it."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _embedded(chart: Mapping[str, Any]) -> str:
    """A specification that cannot end the script element that it stands in."""
    return json.dumps(chart, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")


def _share(value: float) -> str:
    return "–" if pd.isna(value) else f"{100 * value:.1f}%"


def _number(value: float, digits: int = 3) -> str:
    return "–" if pd.isna(value) else f"{value:.{digits}g}"
