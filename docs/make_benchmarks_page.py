"""Print docs/benchmarks.md from benchmarks/results: python docs/make_benchmarks_page.py > docs/benchmarks.md"""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
# Headings in the order of the page. A result belongs to the first key that its name starts with.
HEADINGS = {
    "contributions": "Contributions of all pairs",
    "directions": "Directions of all pairs",
    "signs": "Signs of directions",
    "selection": "Selection of pairs by text",
    "segmentation_stage": "Segmentation stage",
    "segmentation_methods": "Accuracy of segmentation methods",
    "segmentation": "Segmentation logits",
    "published_choices": "Choices of the published code",
    "canvas": "Label maps",
    "sparse_text": "Sparse codes",
    "texts": "Text tower",
    "features": "Image tower",
    "storage": "Storage",
    "checksums": "Checksums",
    "memory": "Memory and time of each stage",
    "index_images": "Listing of images",
    "sharding": "Sharding",
    "explorer": "Explorer",
    "end_to_end": "Whole workflow",
    "coverage": "Coverage of intervals",
    "drift_detection": "Drift detection",
    "shift_calibration": "False discoveries of shift",
    "naming": "Accuracy of names",
    "towers": "CLIP-ResNet and vision transformer",
    "sparsity": "Sparsity",
}
VECTOR_UNITS = ("amx_bf16", "avx512_bf16", "avx512_f", "avx2")  # those that decide what is fast
INTRODUCTION = """# Benchmarks

`python docs/make_benchmarks_page.py` generates this page from `benchmarks/results/*.json`, which the commands below wrote. Each
command measures both sides in one run. The machines are noisy, so read ratios. Weights are random at the published sizes unless
a table names the demo: time, size and memory do not depend on what a model has learnt. `benchmarks/published.py` reimplements
the published formulation (dense tensors, one SVD per pair, gathers), at sizes that it can handle.

To install the package that sparse codes are compared with, run `pip install -c constraints.txt -e ".[benchmarks]"`. To try a
command, add `--tiny`: it then runs in seconds, prints its table and writes nothing to `benchmarks/results/`.
"""


def main() -> None:
    """Write the page to standard output."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    keys = list(HEADINGS)
    results.sort(key=lambda result: keys.index(heading_key(result["name"])))
    print(INTRODUCTION)
    previous = None
    for result in results:
        key = heading_key(result["name"])
        if key != previous:
            print(f"## {HEADINGS[key]}\n")
        print(f"{result['title']}.\n\n{origin(result)}\n")
        print_table(result["rows"])
        previous = key


def heading_key(name: str) -> str:
    """Return the key of HEADINGS for a result's name."""
    return next(key for key in HEADINGS if name.startswith(key))


def origin(result: dict[str, Any]) -> str:
    """Return the command, date and machine of a result as one line."""
    machine = result["machine"]
    vector_units = [name for name in VECTOR_UNITS if name in machine["vector units"].split()]
    processor = machine["gpu"] or f"{machine['processor']} ({', '.join(vector_units)})"
    return (
        f"`{result['command']}`, {result['date']}: {processor}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"Python {machine['python']}, torch {machine['torch']}"
    )


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    columns = list(rows[0])
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(str(row.get(column, '')) for column in columns)} |")
    print()


if __name__ == "__main__":
    main()
