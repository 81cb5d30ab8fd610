"""A new analysis, added to a finished run in five places as CONTRIBUTING.md says, runs by itself: nothing else runs again."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
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
PAIR_COUNT = CsvKind(
    "pair_count",
    "results/pair_count.csv",
    {"pairs": "number of pairs", "varying": "pairs that vary"},
    Final("count_pairs", "Analyses", "Numbers of pairs."),
)
"""
TEST = """
import numpy as np

from nadpipe.circuit.counting import count_positive


def test_zero_and_negative_values_do_not_count():
    assert count_positive(np.array([0.0, -1.0, 2.0])) == 1
"""
RULE = '''

rule count_pairs:
    input:
        directions="results/artifacts/directions/pair.zarr",
    output:
        table=final("results/pair_count.csv"),
        checksum="results/pair_count.csv.sha256",
    log:
        "logs/count_pairs.log",
    params:
        code=code("count_pairs"),
    shell:
        """
        nadpipe count-pairs --directions {input.directions:q} --output {output.table:q} 2>{log}
        """
'''


def new_files(folder):
    """Return the contents of the files that the new analysis adds or changes, by path: five places, and a figure."""
    schemas, rules = ("nadpipe/store/kinds/analyses.py", "rules/analyses.smk")
    return {
        "nadpipe/circuit/counting.py": NUMERICS,
        "nadpipe/stages/count_pairs.py": STAGE,
        schemas: (folder / schemas).read_text() + SCHEMA,
        rules: (folder / rules).read_text() + RULE,
        "tests/test_counting.py": TEST,
        "nadpipe/pages/figures/pair_count.py": FIGURE,
    }


def run_python(folder, *arguments):
    """Run Python on a checkout's package and tests; return what it prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(folder / "tests")])}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


NEW = {"count_pairs": 1, "plot_table": 1}
PAGES = {"describe_results": 1, "make_report": 1}  # they list all tables
EXPECTED = """
import json, sys
from changes import EDITS, completed, followed
plans = json.loads(sys.argv[1])
print(json.dumps([completed(followed(EDITS[module], following)) for module, following in plans]))
"""


@pytest.fixture(scope="module")
def log(checkout):
    """Add the analysis to the finished run and run again; return the log."""
    (checkout.folder / "tests").mkdir()
    shutil.copy(Path(__file__).with_name("changes.py"), checkout.folder / "tests")
    files = new_files(checkout.folder)
    assert plan_edits(checkout.folder, [files]) == [NEW | PAGES]
    for path, content in files.items():
        (checkout.folder / path).write_text(content)
    return checkout.run("all").stderr


def test_a_new_analysis_runs_only_itself_and_the_pages_that_list_it(checkout, log, tmp_path):
    assert set(re.findall(r"^(?:local)?rule (\w+):", log, re.MULTILINE)) == {*NEW, *PAGES, "all"}
    table = pd.read_csv(checkout.folder / "results" / "pair_count.csv")
    assert table["pairs"].item() == 12 * 768
    assert 0 < table["varying"].item() <= table["pairs"].item()
    assert (checkout.folder / "results" / "pair_count.png").stat().st_size > 1000
    assert checkout.plan() == {}
    checkout.run("all", "--report", str(tmp_path / "report.html"))
    assert (tmp_path / "report.html").read_text().count("Numbers of pairs.") == 2  # captions of the table and of the plot
    assert "1 passed" in run_python(checkout.folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_counting.py")


def test_the_table_of_changes_covers_the_new_analysis(checkout, log):
    """It has no row there. What reruns it follows from its code and its inputs."""
    modules = ["stages/count_pairs.py", "circuit/counting.py", "stages/fit_directions.py", "stages/embed_texts.py"]
    edits = []
    for module in modules:
        path = f"nadpipe/{module}"
        source = (checkout.folder / path).read_text()
        edits.append(
            {path: re.sub(r"^(    )(?=[a-z]\w* = |return )", r"\1edited = True; ", source, count=1, flags=re.MULTILINE)}
        )
    plans = plan_edits(checkout.folder, edits)
    given = json.dumps([(module, sorted(plan.following)) for module, plan in zip(modules, plans, strict=True)])
    assert plans == json.loads(run_python(checkout.folder, "-c", EXPECTED, given))
    assert ["count_pairs" in plan for plan in plans] == [True, True, True, False]
    assert plans[0] == plans[1] == NEW | PAGES
    assert "count_pairs, measure_ledger: also rerun" in run_python(checkout.folder, "tests/changes.py")
