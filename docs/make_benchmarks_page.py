"""Print docs/benchmarks.md from benchmarks/results: python docs/make_benchmarks_page.py > docs/benchmarks.md"""

import json
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
ORDER = (
    "contributions",
    "directions",
    "segmentation_stage",
    "segmentation_methods",
    "segmentation",
    "canvas",
    "sparse_text",
    "texts",
    "features",
    "storage",
    "memory",
    "sharding",
    "explorer",
    "end_to_end",
    "drift_detection",
    "naming",
)
TOLD = ("amx_bf16", "avx512_bf16", "avx512_f", "avx2")  # vector units that decide what is fast
HEAD = """# Benchmarks

Made by `python docs/make_benchmarks_page.py` from `benchmarks/results/*.json`, which the commands below wrote. Each command
measures both sides in one run; these machines are noisy, so read ratios. Weights are random at the published sizes: time, size
and memory do not depend on what a model has learnt. The published formulation (dense tensors, an SVD a pair, gathers) is
written anew in `benchmarks/published.py`, at sizes that it survives.

The package that sparse codes are compared with comes with `pip install -c constraints.txt -e ".[benchmarks]"`.
"""


def main() -> None:
    """Write the page to standard output."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    found.sort(key=lambda content: next(at for at, name in enumerate(ORDER) if content["name"].startswith(name)))
    print(HEAD)
    for content in found:
        machine = content["machine"]
        units = [name for name in TOLD if name in machine["vector units"].split()]
        where = machine["gpu"] or f"{machine['processor']} ({', '.join(units)})"
        columns = list(content["rows"][0])
        print(f"## {content['about']}\n")
        print(
            f"`{content['command']}`, {content['date']}: {where}, {machine['cores']} cores, {machine['memory_gib']} GiB, ",
            end="",
        )
        print(f"Python {machine['python']}, torch {machine['torch']}\n")
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for row in content["rows"]:
            print(f"| {' | '.join(str(row.get(column, '')) for column in columns)} |")
        print()


if __name__ == "__main__":
    main()
