"""Print docs/benchmarks.md from benchmarks/results: python docs/make_benchmarks_page.py > docs/benchmarks.md"""

import json
import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
# Headings in the order of the page. A result belongs to the first key that its name starts with.
HEADINGS = {
    "contributions": "Contributions of all pairs",
    "directions": "Directions of all pairs",
    "segmentation_stage": "Segmentation stage",
    "segmentation_methods": "Accuracy of segmentation methods",
    "segmentation": "Segmentation logits",
    "canvas": "Label maps",
    "sparse_text": "Sparse codes",
    "texts": "Text tower",
    "features": "Image tower",
    "storage": "Storage",
    "memory": "Memory and time of each stage",
    "sharding": "Sharding",
    "explorer": "Explorer",
    "end_to_end": "Whole workflow",
    "drift_detection": "Drift detection",
    "naming": "Accuracy of names",
}
# Plain terms for columns and cells of results that were recorded with other wording.
TERMS = {
    "times faster": "speed-up",
    "times as fast": "speed-up",
    "nadpipe is faster": "speed-up of nadpipe",
    "all 147,456 pairs, s": "s, all 147,456 pairs",
    "all 147,456 pairs": "time, all 147,456 pairs",
    "smallest cosine of the two": "smallest cosine between both",
    "on top": "time added to encoding",
    "all of these": "all eight methods",
    "MiB above the start": "MiB above baseline",
    "the same, its inner function alone, v0": "orthogonal-matching-pursuit-gpu, inner function, v0",
    "the same, its inner function alone, naive": "orthogonal-matching-pursuit-gpu, inner function, naive",
    "features, times the plain loop": "features, speed-up",
    "both, times the plain loop": "features + contributions, speed-up",
    "contributions, of the plain loop's time": "contributions, share of the plain loop's time",
    "differs from encode_image by": "difference from encode_image",
    "embedding moves by, activations": "embedding error from rounded activations",
    "embedding moves by, coefficients": "embedding error from rounded coefficients",
    "files for coefficients": "coefficient files",
    "one image, ms": "read one image, ms",
    "one pair's column, ms": "read one pair's column, ms",
    "largest difference of embeddings": "largest difference between embeddings",
    "what": "task",
    "peak MiB of memory": "peak memory, MiB",
    "peak memory of a job, MiB": "peak memory per job, MiB",
    "at full strength, what it names": "named at full strength",
    "against nad": "difference to nad",
    "against maskclip, the best baseline": "difference to maskclip, the best baseline",
    "cosine + that": "cosine to the direction + cosine to the 50 top images",
    "cosine + correlation": "cosine to the direction + correlation",
}
PHRASES = (
    (re.compile(r"(?<=\w)(?<!opening) an? (?=(class|head|image|second|signal|view)\b)"), " per "),
    (re.compile(r"^of the (.+), drift: (\d+%)$"), r"\2 of the \1 drift"),
)
VECTOR_UNITS = ("amx_bf16", "avx512_bf16", "avx512_f", "avx2")  # those that decide what is fast
INTRODUCTION = """# Benchmarks

`python docs/make_benchmarks_page.py` generates this page from `benchmarks/results/*.json`, which the commands below wrote. Each
command measures both sides in one run. The machines are noisy, so read ratios. Weights are random at the published sizes unless
a table names the demo: time, size and memory do not depend on what a model has learnt. `benchmarks/published.py` reimplements
the published formulation (dense tensors, one SVD per pair, gathers), at sizes that it can handle.

To install the package that sparse codes are compared with, run `pip install -c constraints.txt -e ".[benchmarks]"`.
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
        print(f"{plain(result['about'])}.\n\n{origin(result)}\n")
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


def plain(text: str) -> str:
    """Return a text of a result in plain terms."""
    text = TERMS.get(text, text)
    for pattern, replacement in PHRASES:
        text = pattern.sub(replacement, text)
    return text


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table, in plain terms."""
    columns = list(rows[0])
    print(f"| {' | '.join(plain(column) for column in columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        cells = [str(row.get(column, "")) for column in columns]
        print(f"| {' | '.join(plain(cell) for cell in cells)} |")
    print()


if __name__ == "__main__":
    main()
