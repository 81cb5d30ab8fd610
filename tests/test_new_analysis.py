"""A new analysis, added to a finished run as CONTRIBUTING.md says, runs by itself: nothing that exists is computed again."""

import re

import pandas as pd
from plans import plan_edits

STAGE = '''"""Count the pairs that vary."""

from pathlib import Path

import pandas as pd

from nadpipe.circuit.counting import count_positive
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.analyses import PAIR_COUNT
from nadpipe.store.kinds.units import DIRECTIONS
from nadpipe.store.tables import write_csv


def count_pairs(directions: Path, output: Path) -> None:
    """Write the number of pairs, and of those that vary.

    Args:
        directions: Pair directions.
        output: CSV table.
    """
    norm = open_zarr(directions, DIRECTIONS["pair"]).read("std_norm")
    write_csv(output, PAIR_COUNT, pd.DataFrame([{"pairs": norm.size, "varying": count_positive(norm)}]))
'''
NUMERICS = '''"""Counting."""

import numpy as np


def count_positive(values: np.ndarray) -> int:
    """Count the values above zero."""
    return int((values > 0).sum())
'''
FIGURE = '''"""Plot the numbers of pairs."""

import pandas as pd
from matplotlib.figure import Figure

from nadpipe.store.kinds.analyses import PAIR_COUNT

KIND = PAIR_COUNT


def draw(table: pd.DataFrame) -> Figure:
    """Draw one bar per number."""
    figure = Figure()
    figure.add_subplot().bar(list(table.columns), table.iloc[0])
    return figure
'''
SCHEMA = """
PAIR_COUNT = CsvKind("pair_count", "results/pair_count.csv", {"pairs": "number of pairs", "varying": "pairs that vary"})
"""
RULE = '''

rule count_pairs:
    input:
        directions="results/artifacts/directions/pair.zarr",
    output:
        table="results/pair_count.csv",
    log:
        "logs/count_pairs.log",
    params:
        code=code("count_pairs"),
    shell:
        """
        nadpipe count-pairs --directions {input.directions:q} --output {output.table:q} 2>{log}
        """
'''
RECORD = '    "pair_count": Analysis("count_pairs", (analyses.PAIR_COUNT,), "Analyses", plotted=True),\n'


def new_files(folder):
    """Return the contents of all files that the new analysis adds or changes, by path."""

    def extended(path, addition, before=None):
        source = (folder / path).read_text()
        return source + addition if before is None else source.replace(before, addition + before, 1)

    return {
        "nadpipe/circuit/counting.py": NUMERICS,
        "nadpipe/stages/count_pairs.py": STAGE,
        "nadpipe/store/kinds/analyses.py": extended("nadpipe/store/kinds/analyses.py", SCHEMA),
        "nadpipe/analyses.py": extended("nadpipe/analyses.py", RECORD, before="}\nPLOTTED ="),
        "nadpipe/pages/figures/pair_count.py": FIGURE,
        "rules/analyses.smk": extended("rules/analyses.smk", RULE),
        "rules/captions/pair_count.rst": "Numbers of pairs.\n",
    }


NEW = {"count_pairs": 1, "plot_table": 1}
PAGES = {"describe_results": 1, "make_report": 1}  # they list all tables


def test_a_new_analysis_runs_only_itself_and_the_pages_that_list_it(checkout):
    files = new_files(checkout.folder)
    assert plan_edits(checkout.folder, [files]) == [NEW | PAGES]
    for path, content in files.items():
        (checkout.folder / path).write_text(content)
    done = checkout.run("all")
    assert set(re.findall(r"^(?:local)?rule (\w+):", done.stderr, re.MULTILINE)) == {*NEW, *PAGES, "all"}
    table = pd.read_csv(checkout.folder / "results" / "pair_count.csv")
    assert table["pairs"].item() == 12 * 768
    assert 0 < table["varying"].item() <= table["pairs"].item()
    assert (checkout.folder / "results" / "pair_count.png").stat().st_size > 1000
    assert checkout.plan() == {}
