"""What reruns when a setting or a module changes: rules, with the number of their jobs on the small demo of the tests.

    python tests/changes.py > docs/changes.md

test_workflow.py makes each change and compares what Snakemake plans.
"""

import json

from nadpipe.analyses import ANALYSES, PLOTTED
from nadpipe.demo.world import CLASSES

SCORED = {"score_segmentation": 1, "plot_classes": 1}
SEGMENTED = {"segment_images": 1, **SCORED, "draw_overlays": 1, "draw_contact_sheets": 1}
CONCEPTS = {"score_shift": 1, "measure_faithfulness": 1}
RANKED = {"measure_polysemanticity": 1, "draw_retrieval": 1}
TABULATED = {"tabulate_units": 3, "rank_shifts": 1, **RANKED}
ASSIGNED = {"assign_texts": 1, "assign_texts_to_subspaces": 2, **TABULATED, "measure_sparse_text": 1, "measure_naming": 1}
NAMED = {"correlate_texts": 1, **ASSIGNED}
REBUILT = {"measure_sparsity": 1, "measure_reconstruction": 1, "measure_sparse_text": 1}
ANALYSED = {**REBUILT, "measure_naming": 1, "measure_faithfulness": 1}
FITTED = {"fit_directions": 3, **NAMED, **ANALYSED, "select_pairs": 2, **SEGMENTED, "score_shift": 1}
ACCUMULATED = {"accumulate_pairs": 2, **FITTED}
DECOMPOSED = {"compute_contributions": 3, **ACCUMULATED}
MEASURED = {"measure_registers": 1, **SEGMENTED}
ENCODED = {"extract_features": 4, **DECOMPOSED, **MEASURED}
EMBEDDED = {"embed_texts": 4, **NAMED, **REBUILT, "select_pairs": 2, **SEGMENTED, **CONCEPTS}
LISTED = {"index_images": 3, "embed_texts": 1, **ENCODED}
MODEL = {"export_readout": 1, **ENCODED, **EMBEDDED}
CLASSED = {"index_classes": 1, "embed_texts": 1, "select_pairs": 1, **SEGMENTED}
OF_SEGMENTATION = {"index_images": 1, "extract_features": 1, **SEGMENTED}
OF_MONITORING = {"compute_contributions": 1, "score_shift": 1, "rank_shifts": 1, **ANALYSED}
OF_MONITORING |= {"index_images": 1, "embed_texts": 1, "extract_features": 1}

CHANGES = {
    "segmentation.datasets": (
        ["segmentation", "more"],
        {**OF_SEGMENTATION, **CLASSED, "plot_classes": 2},
    ),
    "segmentation.k": ([50], {"select_pairs": 1, **SEGMENTED}),
    "segmentation.select_by": ("direction", {"select_pairs": 1, **SEGMENTED}),
    "segmentation.temperature": (10, SEGMENTED),
    "segmentation.sink": (5, SEGMENTED),
    "segmentation.methods": (["nad", "maskclip"], SEGMENTED),
    "segmentation.stride": (0.7, {"extract_features": 1, **SEGMENTED}),
    "segmentation.scale": (1.5, {"extract_features": 1, **SEGMENTED}),
    "segmentation.crop": (0.5, {"extract_features": 1, **SEGMENTED}),
    "segmentation.block": (0, {"extract_features": 1, **SEGMENTED}),
    "segmentation.overlays": (2, {"draw_overlays": 1}),
    "segmentation.extremes": (2, {"draw_contact_sheets": 1}),
    "segmentation.resamples": (300, SCORED),
    "segmentation.confidence": (0.9, SCORED),
    "registers.images": (5, MEASURED),
    "registers.sink_factor": (4, MEASURED),
    "datasets.segmentation.classes": ([*reversed(CLASSES)], CLASSED),
    "datasets.segmentation.reduce_zero_label": (True, CLASSED),
    "datasets.segmentation.ignore": (254, CLASSED),
    "datasets.segmentation.background_names": (False, {"embed_texts": 1, "select_pairs": 1, **SEGMENTED}),
    "datasets.segmentation.background_threshold": (0.2, SEGMENTED),
    "datasets.segmentation.area_threshold": (0.01, SEGMENTED),
    "datasets.segmentation.split": ("val", {**OF_SEGMENTATION, "index_classes": 1, "embed_texts": 1, "select_pairs": 1}),
    "directions.top_images": (10, ACCUMULATED),
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
    "shift.test": ("ks", {"score_shift": 1}),
    "shift.small_group": (5, {"score_shift": 1, "rank_shifts": 1}),
    "shift.examples": (2, {"rank_shifts": 1}),
    "analyses.dataset": ("discovery", {"embed_texts": 1, **ANALYSED}),
    "analyses.images": (50, REBUILT),
    "analyses.confidence": (0.9, REBUILT),
    "analyses.shares": ([0.5], {"measure_sparsity": 1}),
    "analyses.draws": (2, {"measure_sparsity": 1, "measure_faithfulness": 1}),
    "analyses.atoms": ([3], {"measure_sparse_text": 1}),
    "explorer.images": (2, {}),
    "explorer.thumbnail": (64, {}),
    "analyses.top": (5, RANKED),
    "analyses.sheets": (3, {"draw_retrieval": 1}),
    "shift.reference": ("2020", {"score_shift": 1, "rank_shifts": 1}),
    "shift.resamples": (300, {"score_shift": 1}),
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
        {"make_demo_data": 1, "index_images": 1, "extract_features": 2, "compute_contributions": 2, **ACCUMULATED, **MEASURED},
    ),
    "demo.monitoring_images_per_year": (5, {"make_demo_data": 1, **OF_MONITORING}),
    "seed": (1, {"make_demo_data": 3, **LISTED}),  # and score_segmentation, score_shift: in LISTED
    "datasets.monitoring.group_column": ("background", OF_MONITORING),
    "datasets.monitoring.label_column": (None, OF_MONITORING),
    "datasets.monitoring.mask_column": ("mask_path", OF_MONITORING),
    "datasets.segmentation.path_column": ("mask_path", OF_SEGMENTATION),
    "datasets.segmentation.path": ("results/demo/monitoring.csv", {**OF_SEGMENTATION, **CLASSED}),
    "datasets.segmentation.layout": ("tree", {**OF_SEGMENTATION, **CLASSED}),
    "datasets.monitoring.shards": (
        2,
        {"extract_features": 2, "compute_contributions": 2, "score_shift": 1, "rank_shifts": 1, **ANALYSED},
    ),
    "datasets.monitoring.bad_images": ("skip", OF_MONITORING),
    "datasets.monitoring.labels": ("README.md", OF_MONITORING),
    "datasets.discovery.shards": (
        1,
        {"extract_features": 1, "compute_contributions": 1, "accumulate_pairs": 1, **FITTED, **MEASURED},
    ),
    "model.architecture": ("RN50", MODEL),
    "model.pretrained": ("openai", MODEL),
}

EDITS = {
    "stages/make_demo_data.py": {"make_demo_data": 3, **LISTED},
    "stages/make_demo_model.py": {"make_demo_model": 1, **MODEL},
    "stages/index_images.py": LISTED,
    "stages/index_classes.py": CLASSED,
    "stages/measure_registers.py": MEASURED,
    "stages/export_readout.py": {"export_readout": 1, **DECOMPOSED, **MEASURED},
    "stages/extract_features.py": ENCODED,
    "stages/compute_contributions.py": DECOMPOSED,
    "stages/accumulate_pairs.py": ACCUMULATED,
    "stages/export_dense.py": {},
    "stages/fit_directions.py": FITTED,
    "stages/embed_texts.py": EMBEDDED,
    "stages/assign_texts.py": ASSIGNED,
    "stages/correlate_texts.py": {"correlate_texts": 1, **TABULATED, "tabulate_units": 1, "measure_naming": 1},
    "stages/tabulate_units.py": TABULATED,
    "stages/select_pairs.py": {"select_pairs": 2, **SEGMENTED, **CONCEPTS},
    "stages/measure_sparsity.py": {"measure_sparsity": 1},
    "stages/measure_reconstruction.py": {"measure_reconstruction": 1},
    "stages/measure_sparse_text.py": {"measure_sparse_text": 1},
    "stages/measure_polysemanticity.py": RANKED,
    "stages/draw_retrieval.py": {"draw_retrieval": 1},
    "stages/measure_naming.py": {"measure_naming": 1},
    "stages/measure_faithfulness.py": {"measure_faithfulness": 1},
    "stages/score_batch.py": {},
    "stages/describe_results.py": {"describe_results": 1, "make_report": 1},
    "stages/build_explorer.py": {"build_explorer": 1},
    "stages/make_report.py": {"make_report": 1},
    "stages/plot_table.py": {"plot_table": len(PLOTTED)},
    "analyses.py": {},
    "circuit/activity.py": {"build_explorer": 1},
    "pages/charts.py": {"make_report": 1},
    "pages/explorer.py": {},
    "pages/explorer_files.py": {"build_explorer": 1},
    **{f"pages/figures/{name}.py": {"plot_table": 1} for name in PLOTTED},
    "pages/html.py": {"make_report": 1},
    "pages/pictures.py": {
        **{"draw_overlays": 1, "draw_contact_sheets": 1, "draw_retrieval": 1},
        **{"build_explorer": 1, "make_report": 1},
    },
    "pages/plots.py": {"plot_table": len(PLOTTED), "plot_classes": 1},
    "pages/report.py": {"make_report": 1},
    **{f"looks/{name}.py": {} for name in ("explain", "search", "show")},
    "stages/segment_images.py": SEGMENTED,
    "stages/score_segmentation.py": SCORED,
    "stages/draw_overlays.py": {"draw_overlays": 1},
    "stages/draw_contact_sheets.py": {"draw_contact_sheets": 1},
    "stages/plot_classes.py": {"plot_classes": 1},
    "stages/score_shift.py": {"score_shift": 1},
    "stages/rank_shifts.py": {"rank_shifts": 1},
    "stages/train_demo.py": {},
    "segmentation.py": SEGMENTED,
    "metrics.py": SEGMENTED,
    "registers.py": MEASURED,
    "data/class_tables.py": {"index_classes": 1, **EMBEDDED},
    "data/layouts.py": {**CLASSED, **LISTED, "embed_texts": 2},  # of classes, and of labels
    "ablation.py": {**REBUILT, "measure_faithfulness": 1},
    "data/labelled.py": REBUILT,
    "data/labels.py": EMBEDDED,
    "shift.py": {"score_shift": 1, "rank_shifts": 1},
    "directions.py": {**DECOMPOSED, **MEASURED},
    "towers/checkpoints.py": MODEL,
    "towers/clip_resnet.py": MODEL,
    "towers/devices.py": MODEL,
    "towers/family.py": MODEL,
    "towers/model.py": MODEL,
    "towers/preprocessing.py": MODEL,
    "towers/sources.py": MODEL,
    "towers/text.py": EMBEDDED,
    "cli.py": {},
}

# rules that make final tables, or what provenance.json records of the data sets and the model
TABLES = {"index_images", "export_readout", *(analysis.stage for analysis in ANALYSES.values())}


def completed(plan: dict[str, int], key: str = "dense.") -> dict[str, int]:
    """A plan of the tables above with what sums up a run: its summary follows every table, and every setting but of `dense`."""
    whole = dict(plan)
    if "tabulate_units" in plan or key.startswith("explorer."):
        whole["build_explorer"] = 1
    plots = sum(analysis.stage in plan for analysis in PLOTTED.values())
    if plots:
        whole["plot_table"] = plots
    if TABLES & plan.keys() or (bool(whole) and not key.startswith("dense.")):
        whole |= {"describe_results": 1, "make_report": 1}
    if "draw_overlays" in plan:
        whole["make_report"] = 1
    return whole


HEAD = """# What a change reruns

Made by `python tests/changes.py`. `tests/test_workflow.py` makes each of these changes to a finished run of the demo and
compares what Snakemake plans with the row: exactly these rules, with as many jobs. The demo of the tests has two shards for
discovery and one for each other data set.

## Settings

| key | changed to | rules that rerun |
|---|---|---|"""
CODE = """
## Code

A module, and what reruns when its code changes; comments and docstrings do not count.

| module | rules that rerun |
|---|---|"""


def main() -> None:
    """Write docs/changes.md to standard output."""
    print(HEAD)
    for key, (value, plan) in CHANGES.items():
        print(f"| `{key}` | `{json.dumps(value, ensure_ascii=False)}` | {told(completed(plan, key))} |")
    print(CODE)
    for module, plan in EDITS.items():
        print(f"| `nadpipe/{module}` | {told(completed(plan))} |")


def told(plan: dict[str, int]) -> str:
    """A plan in words; most rules have one job."""
    return ", ".join(rule if jobs == 1 else f"{rule} × {jobs}" for rule, jobs in plan.items()) or "none"


if __name__ == "__main__":
    main()
