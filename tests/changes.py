"""Tables of what reruns after a change of a setting or a module: rules, with the number of their jobs on the small demo.

    python tests/changes.py > docs/changes.md

test_changes.py makes each change and compares the rows with what Snakemake plans. An analysis may have no rows here
(UNLISTED). It must rerun after an edit of code that its stage uses and when its inputs are made again, and for no other reason.
"""

import json
from collections.abc import Iterable

from nadpipe.analyses import FINAL, PLOTTED
from nadpipe.demo.world import CLASSES
from nadpipe.fingerprint import is_plumbing, used_definitions

SCORED = {"score_segmentation": 1, "plot_classes": 1}
SEGMENTED = {"segment_images": 1, **SCORED, "measure_shares": 1, "draw_overlays": 1, "draw_contact_sheets": 1}
CONCEPTS = {"score_shift": 1, "measure_faithfulness": 1}
RANKED = {"measure_polysemanticity": 1, "draw_retrieval": 1}
TABULATED = {"tabulate_units": 3, "rank_shifts": 1, **RANKED}
ASSIGNED = {"assign_texts": 1, "assign_texts_to_subspaces": 2, **TABULATED, "measure_sparse_text": 1, "measure_naming": 1}
NAMED = {"correlate_texts": 1, **ASSIGNED}
REBUILT = {"measure_sparsity": 1, "measure_reconstruction": 1, "measure_sparse_text": 1}
ANALYSED = {**REBUILT, "measure_naming": 1, "measure_faithfulness": 1}
EXPLORED = {"find_extremes": 1, "map_firing": 2}
FITTED = {"fit_directions": 3, **NAMED, **ANALYSED, "select_pairs": 2, **SEGMENTED, "score_shift": 1, **EXPLORED}
ACCUMULATED = {"accumulate_pairs": 2, **FITTED}
DECOMPOSED = {"compute_contributions": 3, "average_heads": 1, **ACCUMULATED}
MEASURED = {"measure_registers": 1, **SEGMENTED}
SAMPLED = {"sample_views": 2, **MEASURED}
ENCODED = {"extract_features": 4, **DECOMPOSED, **SAMPLED}
EMBEDDED = {"embed_texts": 4, **NAMED, **REBUILT, "select_pairs": 2, **SEGMENTED, **CONCEPTS}
LISTED = {"index_images": 3, "check_masks": 1, "embed_texts": 1, **ENCODED}
MODEL = {"export_readout": 1, **ENCODED, **EMBEDDED}
DISCOVERED = {"extract_features": 2, "compute_contributions": 2, "average_heads": 1, **ACCUMULATED, **SAMPLED}
CLASSED = {"index_classes": 1, "check_masks": 1, "embed_texts": 1, "select_pairs": 1, **SEGMENTED}
OF_SEGMENTATION = {"index_images": 1, "check_masks": 1, "extract_features": 1, **SEGMENTED}
OF_MONITORING = {"compute_contributions": 1, "score_shift": 1, "rank_shifts": 1, **ANALYSED}
OF_MONITORING |= {"index_images": 1, "embed_texts": 1, "extract_features": 1}
OF_MASKS = {"check_masks", *SCORED, "draw_contact_sheets"}
UNMASKED = {rule: jobs for rule, jobs in (OF_SEGMENTATION | CLASSED).items() if rule not in OF_MASKS}

SHARDED = ("extract_features", "compute_contributions", "accumulate_pairs", "sample_views", "map_firing")

CHANGES = {
    "segmentation.datasets": (
        ["segmentation", "more"],
        {**OF_SEGMENTATION, **CLASSED, "plot_classes": 2},
    ),
    "segmentation.k": ([50], {"select_pairs": 1, **SEGMENTED}),
    "segmentation.select_by": ("direction", {"select_pairs": 1, **SEGMENTED}),
    "segmentation.temperature": (10, SEGMENTED),
    "segmentation.sink": (5, SEGMENTED),
    "segmentation.sink_replacement": ("vectors", SEGMENTED),
    "segmentation.resize": ("opencv", {"extract_features": 1, **SEGMENTED}),
    "segmentation.methods": (["nad", "maskclip"], SEGMENTED),
    "segmentation.stride": (0.7, {"extract_features": 1, **SEGMENTED}),
    "segmentation.scale": (1.5, {"extract_features": 1, **SEGMENTED}),
    "segmentation.crop": (0.5, {"extract_features": 1, **SEGMENTED}),
    "segmentation.block": (0, {"extract_features": 1, **SEGMENTED}),
    "segmentation.overlays": (2, {"draw_overlays": 1}),
    "segmentation.extremes": (2, {"draw_contact_sheets": 1}),
    "segmentation.confidence": (0.9, SCORED),
    "registers.images": (5, SAMPLED),
    "registers.sink_factor": (4, MEASURED),
    "registers.rank_by": ("absolute", MEASURED),
    "datasets.segmentation.classes": ([*reversed(CLASSES)], CLASSED),
    "datasets.segmentation.reduce_zero_label": (True, CLASSED),
    "datasets.segmentation.ignore": (254, CLASSED),
    "datasets.segmentation.background_names": (False, {"embed_texts": 1, "select_pairs": 1, **SEGMENTED}),
    "datasets.segmentation.background_threshold": (0.2, SEGMENTED),
    "datasets.segmentation.area_threshold": (0.01, SEGMENTED),
    "datasets.segmentation.split": ("val", {**OF_SEGMENTATION, **CLASSED}),
    "directions.top_share": (0.3, ACCUMULATED),
    "directions.top_images": (20, ACCUMULATED),
    "directions.components": (
        2,
        {"fit_directions": 2, "assign_texts_to_subspaces": 2, "tabulate_units": 2, **REBUILT, **RANKED},
    ),
    "assignments.atoms": (3, ASSIGNED),
    "assignments.nearest": (2, NAMED),
    "assignments.sparse_share": (0.5, ASSIGNED),
    "assignments.device": ("auto", {}),
    "dense.datasets": (["discovery", "monitoring"], {"export_dense": 3}),
    "dense.dtype": ("float16", {}),
    "contributions.dtype": ("float16", DECOMPOSED),
    "features.precision": ("bfloat16", ENCODED),
    "features.dtype": ("float16", ENCODED),
    "text.dictionary": ("README.md", {"embed_texts": 1, **NAMED, "select_pairs": 1, **CONCEPTS}),
    "text.templates": (["{}"], EMBEDDED),
    "shift.concepts": (["fish", "red"], {"embed_texts": 1, "select_pairs": 1, **CONCEPTS}),
    "shift.k": (20, {"select_pairs": 1, **CONCEPTS}),
    "shift.select_by": ("direction", {"select_pairs": 1, **CONCEPTS}),
    "shift.centre": ("none", {"select_pairs": 1, **CONCEPTS}),
    "shift.test": ("ks", {"score_shift": 1}),
    "shift.small_group": (5, {"score_shift": 1, "rank_shifts": 1}),
    "shift.examples": (2, {"rank_shifts": 1}),
    "analyses.dataset": ("discovery", {"embed_texts": 1, **ANALYSED}),
    "analyses.images": (50, REBUILT),
    "analyses.confidence": (0.9, {**REBUILT, "measure_naming": 1}),
    "analyses.shares": ([0.5], {"measure_sparsity": 1}),
    "analyses.ablate": ([0.2], {"measure_faithfulness": 1}),
    "analyses.draws": (1, {"measure_sparsity": 1, "measure_sparse_text": 1, "measure_faithfulness": 1}),
    "analyses.atoms": ([3], {"measure_sparse_text": 1}),
    "analyses.control_units": (20, {"measure_sparse_text": 1}),
    "explorer.images": (2, EXPLORED),
    "explorer.thumbnail": (64, {}),
    "analyses.top": (5, RANKED),
    "analyses.sheets": (2, {"draw_retrieval": 1}),
    "shift.reference": ("2020", {"score_shift": 1, "rank_shifts": 1}),
    "shift.confidence": (0.9, {"score_shift": 1}),
    "contributions.tolerance": (1e-4, DECOMPOSED),
    "contributions.batch_size": (7, {}),
    "features.batch_size": (7, {}),
    "features.workers": (1, {}),
    "text.batch_size": (7, {}),
    "text.cache": ("cache", {}),
    "device": ("cpu", {}),
    "demo.segmentation_images": (4, {"make_demo_data": 1, **OF_SEGMENTATION}),
    "demo.discovery_images": (
        50,
        {"make_demo_data": 1, "index_images": 1, **DISCOVERED},
    ),
    "demo.monitoring_images_per_year": (5, {"make_demo_data": 1, **OF_MONITORING}),
    "seed": (1, {"make_demo_data": 3, **LISTED}),
    "datasets.monitoring.group_column": ("background", OF_MONITORING),
    "datasets.monitoring.label_column": ("year", OF_MONITORING),
    "datasets.monitoring.mask_column": ("mask_path", OF_MONITORING),
    "datasets.segmentation.path_column": ("mask_path", OF_SEGMENTATION),
    "datasets.segmentation.path": ("results/demo/monitoring.csv", {**OF_SEGMENTATION, **CLASSED}),
    "datasets.segmentation.layout": ("tree", UNMASKED),
    "datasets.monitoring.shards": (
        2,
        {"extract_features": 2, "compute_contributions": 2, "score_shift": 1, "rank_shifts": 1, **ANALYSED},
    ),
    "datasets.monitoring.bad_images": ("skip", OF_MONITORING),
    "datasets.monitoring.labels": ("README.md", OF_MONITORING),
    "datasets.discovery.shards": (
        1,
        DISCOVERED | dict.fromkeys(SHARDED, 1),
    ),
    "model.architecture": ("RN50", MODEL),
    "model.pretrained": ("openai", MODEL),
    "model.block": (2, {"export_readout": 1, **ENCODED}),
}

_FOLDER = {"layout": "folder", "path": "results/demo/segmentation", "mask_column": None, "label_column": None}
BESIDE = {  # keys that must change together with a key
    "datasets.segmentation.background_threshold": {"classes": ["background", *CLASSES[1:]]},
    "datasets.segmentation.split": _FOLDER,
    "datasets.segmentation.layout": {"mask_column": None, "label_column": None},
}

ALSO = {"datasets.segmentation.background_threshold": CLASSED}  # what the keys beside a key rerun

STAGES = {  # after an edit of the stage's own module
    "make_demo_data": {"make_demo_data": 3, **LISTED},
    "make_demo_model": {"make_demo_model": 1, **MODEL},
    "make_demo_dictionary": {"make_demo_dictionary": 1, "embed_texts": 1, **NAMED, "select_pairs": 1, **CONCEPTS},
    "index_images": LISTED,
    "index_classes": CLASSED,
    "check_masks": {"check_masks": 1, **SEGMENTED},
    "sample_views": SAMPLED,
    "measure_registers": MEASURED,
    "export_readout": {"export_readout": 1, **DECOMPOSED, **MEASURED},
    "extract_features": ENCODED,
    "compute_contributions": DECOMPOSED,
    "average_heads": {"average_heads": 1, **SEGMENTED},
    "accumulate_pairs": ACCUMULATED,
    "export_dense": {},
    "fit_directions": FITTED,
    "embed_texts": EMBEDDED,
    "assign_texts": ASSIGNED,
    "correlate_texts": {"correlate_texts": 1, **TABULATED, "tabulate_units": 1, "measure_naming": 1},
    "tabulate_units": TABULATED,
    "select_pairs": {"select_pairs": 2, **SEGMENTED, **CONCEPTS},
    "measure_sparsity": {"measure_sparsity": 1},
    "measure_reconstruction": {"measure_reconstruction": 1},
    "measure_sparse_text": {"measure_sparse_text": 1},
    "measure_polysemanticity": RANKED,
    "draw_retrieval": {"draw_retrieval": 1},
    "measure_naming": {"measure_naming": 1},
    "measure_faithfulness": {"measure_faithfulness": 1},
    "segment_images": SEGMENTED,
    "score_segmentation": SCORED,
    "measure_shares": {"measure_shares": 1},
    "draw_overlays": {"draw_overlays": 1},
    "draw_contact_sheets": {"draw_contact_sheets": 1},
    "score_shift": {"score_shift": 1},
    "score_batch": {},
    "rank_shifts": {"rank_shifts": 1},
    "plot_table": {"plot_table": len(PLOTTED)},
    "plot_classes": {"plot_classes": 1},
    "describe_results": {"describe_results": 1, "make_report": 1},
    "find_extremes": EXPLORED,
    "map_firing": {"map_firing": 2},
    "build_explorer": {"build_explorer": 1},
    "make_report": {"make_report": 1},
    "train_demo": {},
}
UNLISTED = {record.stage for record in FINAL.values()} - STAGES.keys()
STAGES |= {stage: {stage: 1} for stage in sorted(UNLISTED)}


def merged(*plans: dict[str, int]) -> dict[str, int]:
    """Return the rules of all plans, each with its largest number of jobs."""
    return {rule: max(plan.get(rule, 0) for plan in plans) for plan in plans for rule in plan}


def edited(*stages: str) -> dict[str, int]:
    """Return the rules that rerun after an edit of code that these stages run."""
    return merged(*(STAGES[stage] for stage in stages))


_TOWER = edited("export_readout", "extract_features", "embed_texts")
_PLUMBING = [
    *(
        "__init__",
        "__main__",
        "analyses",
        "cli",
        "config",
        "config_file",
        "errors",
        "fingerprint",
        "needs",
        "outcome",
        "preflight",
        "progress",
    ),
    *(f"{package}/__init__" for package in ("circuit", "data", "demo", "pages", "pages/figures", "stages", "towers")),
    *("demo/train", "pages/explorer"),
    *("looks/__init__", "looks/explain", "looks/search", "looks/segment", "looks/serve", "looks/show"),
    *("library/__init__", "library/decomposition", "library/results", "library/segmentation"),
    *("start/__init__", "start/init", "start/run"),
    *(
        "store/__init__",
        "store/arrays",
        "store/atomic",
        "store/checksums",
        "store/columns",
        "store/dense",
        "store/explorer",
        "store/files",
        "store/label_maps",
        "store/manifest",
        "store/moments",
        "store/png",
    ),
    *("store/pairs", "store/pool", "store/readout", "store/results", "store/schema", "store/selection", "store/shards"),
    *(
        "store/stamp",
        "store/tables",
        "store/kinds/__init__",
        "store/kinds/analyses",
        "store/kinds/explorer",
        "store/kinds/features",
    ),
    *("store/kinds/images", "store/kinds/model", "store/kinds/segmentation", "store/kinds/shift", "store/kinds/texts"),
    *("store/kinds/units", "towers/model_config"),
]
_TOWERS = ("checkpoints", "clip_resnet", "devices", "family", "model", "preprocessing", "sources", "timm_resnet", "vit")
_TOWERS += ("class_token", "coca", "map_head", "query_pool", "timm_trunk", "timm_vit", "transformer")
EDITS = {
    **{f"stages/{stage}.py": plan for stage, plan in STAGES.items()},
    **{f"{name}.py": {} for name in _PLUMBING},
    **{f"pages/figures/{name}.py": {"plot_table": 1} for name in PLOTTED},
    **{f"towers/{name}.py": _TOWER for name in _TOWERS},
    "towers/text.py": edited("embed_texts"),
    "towers/word_lists.py": edited("embed_texts"),
    "circuit/ablation.py": merged(REBUILT, edited("measure_naming", "measure_faithfulness")),
    "circuit/accumulators.py": edited("compute_contributions", "measure_registers"),
    "circuit/activity.py": EXPLORED,
    "circuit/attention.py": _TOWER,
    "circuit/canvas.py": edited("segment_images"),
    "circuit/controls.py": edited("measure_naming", "measure_faithfulness"),
    "circuit/directions.py": edited("accumulate_pairs"),
    "circuit/label_values.py": edited("index_classes", "embed_texts"),
    "circuit/ledger.py": edited("compute_contributions"),
    "circuit/methods.py": edited("segment_images"),
    "circuit/intervals.py": edited("score_segmentation", "score_shift"),
    "circuit/metrics.py": edited("segment_images"),
    "circuit/naming.py": merged(edited("select_pairs", "assign_texts", "correlate_texts"), ANALYSED),
    "circuit/pursuit.py": merged(edited("assign_texts"), edited("measure_naming")),
    "circuit/readout.py": _TOWER,
    "circuit/registers.py": edited("measure_registers"),
    "circuit/segmentation.py": edited("segment_images"),
    "circuit/shift.py": edited("score_shift", "rank_shifts"),
    "circuit/unit_kinds.py": edited("fit_directions"),
    "circuit/units.py": edited("fit_directions"),
    "data/class_tables.py": edited("index_classes", "embed_texts"),
    "data/classes.py": edited("index_images", "index_classes", "embed_texts"),
    "data/dictionaries.py": edited("embed_texts"),
    "data/labelled.py": REBUILT,
    "data/labels.py": edited("embed_texts"),
    "data/folders.py": edited("index_images", "index_classes") | {"embed_texts": 2},
    "data/listing.py": edited("index_images", "index_classes") | {"embed_texts": 2},
    "data/layouts.py": edited("index_images", "index_classes") | {"embed_texts": 2},  # texts of classes and of labels
    "data/manifest.py": edited("index_images"),
    "data/masks.py": edited("check_masks", "segment_images"),
    "data/text_files.py": edited("index_images", "index_classes", "embed_texts"),
    "data/tables.py": edited("index_images", "index_classes") | {"embed_texts": 2},
    "data/views.py": edited("index_images"),
    "demo/checkpoint.py": edited("make_demo_model"),
    "demo/data.py": edited("make_demo_data", "make_demo_dictionary") | {"embed_texts": 2},  # labels, dictionary
    "demo/files.py": edited("make_demo_model"),
    "demo/world.py": edited("make_demo_data", "make_demo_dictionary") | {"embed_texts": 2},
    "pages/charts.py": edited("make_report"),
    "pages/explorer_files.py": edited("build_explorer"),
    "pages/html.py": edited("make_report"),
    "pages/pictures.py": edited("build_explorer", "draw_overlays", "draw_contact_sheets", "draw_retrieval"),
    "pages/plots.py": edited("plot_table", "plot_classes"),
    "pages/report.py": edited("make_report"),
    "pages/shift_texts.py": edited("make_report"),
}


for _stage in sorted(UNLISTED):
    _modules = {definition.module for definition in used_definitions(f"nadpipe.stages.{_stage}")}
    for _module in sorted(name for name in _modules if not is_plumbing(name)):
        _path = f"{_module.removeprefix('nadpipe.').replace('.', '/')}.py"
        EDITS[_path] = merged(EDITS.get(_path, {}), STAGES[_stage])
TABLES = {"index_images", "export_readout", *(record.stage for record in FINAL.values())}


def followed(plan: dict[str, int], following: Iterable[str]) -> dict[str, int]:
    """Return a plan with the analyses without rows whose inputs are made again. following: rules whose inputs are."""
    return plan | dict.fromkeys(sorted(UNLISTED & set(following)), 1)


def completed(plan: dict[str, int], key: str = "dense.") -> dict[str, int]:
    """Return a plan with the rules that depend on many others added: plots, summary, report and explorer.

    The summary contains checksums of all tables, and all settings except those of `dense`.
    """
    extended = dict(plan)
    plots = sum(FINAL[path].stage in plan for path in PLOTTED.values())
    if plots:
        extended["plot_table"] = max(plots, plan.get("plot_table", 0))
    if {"tabulate_units", "map_firing"} & plan.keys() or key.startswith("explorer."):
        extended["build_explorer"] = 1
    if TABLES & plan.keys() or (bool(extended) and not key.startswith("dense.")):
        extended |= {"describe_results": 1, "make_report": 1}
    if "draw_overlays" in plan:
        extended["make_report"] = 1
    return extended


HEAD = """# What a change reruns

`python tests/changes.py` writes this page. `tests/test_changes.py` makes each change on a finished run of the small demo and
compares Snakemake's plan with the row. The small demo has two shards for discovery and one for each other data set.

## Settings

| key | changed to | rules that rerun |
|---|---|---|"""
CODE = """
## Code

Each row edits every definition of a module. An edit of one function reruns only the stages that use it. Comments, docstrings,
messages and progress lines do not count. Every module of the package has a row.

| modules of `nadpipe/` | rules that rerun |
|---|---|"""


def main() -> None:
    """Write docs/changes.md to standard output."""
    print(HEAD)
    for key, (value, plan) in CHANGES.items():
        print(f"| `{key}` | `{json.dumps(value, ensure_ascii=False)}` | {describe(completed(plan, key))} |")
    print(CODE)
    modules: dict[str, list[str]] = {}
    for module, plan in EDITS.items():
        modules.setdefault(describe(completed(plan)), []).append(f"`{module}`")
    for plan, names in sorted(modules.items(), key=lambda row: len(row[0])):
        print(f"| {', '.join(names)} | {plan} |")
    if UNLISTED:
        print(f"\n{', '.join(sorted(UNLISTED))}: also rerun whenever one of their inputs is made again.")


def describe(plan: dict[str, int]) -> str:
    """Return a plan in words."""
    return ", ".join(rule if jobs == 1 else f"{rule} × {jobs}" for rule, jobs in plan.items()) or "none"


if __name__ == "__main__":
    main()
