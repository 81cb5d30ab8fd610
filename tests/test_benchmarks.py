"""The published formulation is right, every benchmark runs at a tiny size, and the page shows the recorded results."""

import importlib.util
import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from checkout import warm_server
from conftest import activations
from reference import dense_contributions, dense_direction

from nadpipe.circuit import attention, naming, segmentation
from nadpipe.circuit.accumulators import Selection
from nadpipe.circuit.methods import METHODS

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
VIT_BLOCK = yaml.safe_load((ROOT / "docs" / "vit_demo.yaml").read_text())["model"]["block"]
RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))
SCRIPTS = sorted({path.stem for path in BENCHMARKS.glob("*.py")} - {"common", "published"})


# ------------------------------------------------------------------------------------------------ published formulation


@pytest.fixture(scope="module")
def published():
    spec = importlib.util.spec_from_file_location("published", BENCHMARKS / "published.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_published_dense_contributions_are_the_formula(published, pool):
    z = activations(pool, 3)
    x = attention.tokens(z, pool)
    pair, _, _ = dense_contributions(z, pool)
    np.testing.assert_allclose(published.dense_contributions(x, attention.attention(x, pool), pool), pair, atol=1e-4)


def test_the_published_direction_is_the_first_singular_vector(published):
    contribution = torch.randn(30, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    [expected], _, _ = dense_direction(contribution.numpy(), 11, 1)
    np.testing.assert_allclose(published.pair_direction(contribution, 11), expected, atol=1e-9)


def test_the_published_gather_is_the_sparse_product(published, pool):
    z = activations(pool, 1)
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(2, pool.heads * pool.neurons, generator=generator).argsort(dim=1)[:, :5]
    selection = Selection(torch.zeros(order.shape), order // pool.neurons, order % pool.neurons)
    text = naming.normalise(torch.randn(2, pool.embed, generator=generator))
    value_mean = torch.zeros(pool.heads, pool.tokens, pool.readout.width)
    tokens = segmentation.Tokens(z, segmentation.Query(pool, text, value_mean, sink=None))
    gathered = published.gathered_logits(z[0], tokens.similarity[0], selection.head, selection.neuron)
    pairs = segmentation.selected_pairs(selection, 5, pool.heads, pool.neurons)
    expected = segmentation.nad(tokens, pairs)[0] * pairs.k / selection.head.shape[1]  # a pool may have fewer pairs
    torch.testing.assert_close(gathered, expected, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ tiny runs


def column(rows, name):
    """Return the numbers of a column, without empty cells; of text like `0.5 (0.4 to 0.6)` or `7%`, the first number."""
    cells = [row[name] for row in rows if row[name] != ""]
    return np.array([float(re.match(r"[-+\d.e]+", str(cell))[0]) for cell in cells])


def check_canvas(rows):
    assert len(rows) == 2
    assert column(rows, "same labels") > 99.9


def check_checksums(rows):
    assert len(rows) == 7
    sizes = [row["bytes, ratio"] for row in rows if row["bytes, ratio"]]
    assert [1 < float(size) < 1.2 for size in sizes] == [True, True]


def check_contributions(rows):
    assert (column(rows, "largest difference") < 1e-5 * column(rows, "largest value")).all()
    assert rows[0]["MB per image"] > rows[1]["MB per image"] == rows[2]["MB per image"]


def check_coverage(rows):
    assert {row["statistic"] for row in rows} >= {"mIoU", "mIoU, all data", "mean", "AUROC", "correlation"}
    assert column(rows, "nadpipe: coverage").mean() > max(0.85, column(rows, "usual: coverage").mean())
    assert (column(rows, "nadpipe: width") > 0).all()


def check_directions(rows):
    assert (column(rows, "smallest cosine between both") > 0.9999).all()


def check_drift_detection(rows):
    assert len(rows) == 5
    comparisons = [name for name in rows[0] if name.startswith("strength")]
    assert len(comparisons) == 4  # two strengths with equal groups, and no drift with two unequal ones
    for name in comparisons:
        assert ((column(rows, name) >= 0) & (column(rows, name) <= 1)).all()


def check_end_to_end(rows):
    rules = {row["rule"]: row["jobs"] for row in rows}
    assert rules["extract_features"] == rules["compute_contributions"] == 2
    assert rules["index_images"] == 2
    assert rules["index_classes"] == rules["fit_directions"] == 1


def check_explorer(rows):
    assert len(rows) == 6
    assert rows[0]["files"] > 100
    assert (column(rows, "s") > 0).all()


def check_features(rows):
    plain, float32, bfloat16 = column(rows, "difference from encode_image")
    assert plain == 0
    assert float32 < 1e-5
    assert float32 < bfloat16 < 0.1


def check_index_images(rows):
    assert len(rows) == 3
    assert (column(rows, "CPU s") > 0).all()
    assert (column(rows, "peak MiB") > 0).all()


def check_memory(rows):
    assert len(rows) == 18
    assert (column(rows, "MiB at 20") > 0).all()


def check_naming(rows):
    counts = Counter(row["units"] for row in rows)
    assert counts["pairs"] == 10
    assert counts["random projections"] == counts["projections of the pairs' spectrum"] == 3
    assert counts["pairs of random weights"] == 4
    assert len(counts) == 6
    active = {row["units"]: column([row], "held out, largest 10%")[0] for row in rows if "active_text" in row["text"]}
    assert active["pairs"] > 0.1 + active["pairs of random weights"]
    assert not any(row["chosen on, largest 1%"] for row in rows if row["units"] == "pairs of random weights")


def check_published_choices(rows):
    *maps, neurons = rows
    alike = column(maps, "in common")
    assert len(alike) == 7
    assert ((alike > 50) & (alike <= 100)).all()
    assert (column(maps, "mIoU") > 0.3).all()
    assert neurons["in common"].endswith("of the first 8 neurons")


def check_segmentation(rows):
    assert (column(rows, "largest difference") < 1e-5 * column(rows, "largest logit")).all()


def check_segmentation_methods(rows):
    methods = [row["method"] for row in rows]
    assert len(set(methods)) == len(methods) > len(METHODS)
    assert {row["method"] for row in rows if row["in nadpipe"]} == set(METHODS)  # variations are registered only for the run
    by_method = dict(zip(methods, column(rows, "held out"), strict=True))
    assert by_method["nad"] > 0.4  # chance is below 0.1
    assert by_method["centred z"] < by_method["neurons"]
    difference = next(row["difference to nad"] for row in rows if row["method"] == "neurons")
    assert float(difference.split()[0]) == pytest.approx(by_method["neurons"] - by_method["nad"], abs=0.0015)


def check_segmentation_stage(rows):
    assert [row["stage"] for row in rows] == ["features"] + 6 * ["segmentation"]
    assert {row["views per image"] for row in rows} == {2}


def check_selection(rows):
    assert {row["model"] for row in rows} == {"demo", "tiny, random weights"}
    assert (column(rows, "least") <= column(rows, "in common")).all()
    assert (column(rows, "in common") <= column(rows, "most")).all()
    common = {(row["texts"], row["k"], row["compared with write, centred"]): row for row in rows if row["model"] == "demo"}
    assert len(common) == 7
    published = common["concepts", 300, "direction, not centred"]
    assert float(published["chance"]) < float(published["in common"]) < 1


def check_sharding(rows):
    assert column(rows, "largest difference between embeddings").tolist() == [0]


def check_signs(rows):
    largest_part = [row for row in rows if row["model"] == "demo" and row["images of a part"] == 12]
    assert [row["top images"] for row in largest_part] == [1, 2, 6, 10]
    positive = column(largest_part, "sign +")
    assert positive[0] > 0.9  # coefficients are skewed to the right, and the few farthest images are there
    assert positive[-1] < 0.2  # nearly all images, whose majority is below the mean
    assert column(largest_part, "same as from a twentieth")[-1] < 0.2
    assert (column(rows, "same sign") <= 1).all()


def check_sparse_text(rows):
    assert len(rows) >= 3
    assert all(row["same supports"].startswith("100.0%") for row in rows)


def check_shift_calibration(rows):
    assert {(row["comparison"].split(",")[0], row["tests of"]) for row in rows} == {
        (name, unit)
        for name in ("random split", "shuffled years", "unmoved group", "real years")
        for unit in ("pairs", "concepts")
    }
    for test in ("Welch", "ranks"):
        share, mean = column(rows, f"{test}: runs with a discovery"), column(rows, f"{test}: mean discoveries")
        assert ((share > 0) == (mean > 0)).all()


def check_sparsity(rows):
    assert [row["pairs kept"] for row in rows][-4:] == ["largest 30%", "random 30%", "smallest 30%", "all"]
    selected = [column(rows, name) for name in rows[0] if name.endswith("selected")]
    np.testing.assert_allclose(sum(selected), 1, atol=0.003)  # each pair selects one attribute
    precision = dict(zip([row["pairs kept"] for row in rows], column(rows, "all, precision"), strict=True))
    assert precision["all"] > precision["smallest 1%"] + 0.2


def check_storage(rows):
    single, half = rows
    assert float(single["embedding error from rounded coefficients"]) == 0
    assert 0 < float(half["embedding error from rounded coefficients"]) < 1e-2
    assert half["bytes per image and pair"] < single["bytes per image and pair"] < 5


def check_towers(rows):
    names = list(rows[0])[2:]
    assert names == ["ResNet", f"ViT, block {VIT_BLOCK}"]
    by_key = {(row["measure"], row["units"]): row for row in rows}
    for kind in ("energy", "variance"):
        parts = [row for row in rows if row["measure"] == f"share of the embedding's {kind}" and "random" not in row["units"]]
        for name in names:
            assert column(parts, name).sum() == pytest.approx(1, abs=0.004)  # rounded
    for row in by_key.values():
        if row["measure"].startswith("mIoU") and row["units"] == "method" and row["ResNet"]:
            assert by_key[row["measure"], "method, random weights"]["ResNet"]
    active = by_key["active_text, largest 10%", "pairs"], by_key["active_text, largest 10%", "pairs, random weights"]
    assert column(active[:1], "ResNet") > column(active[1:], "ResNet")
    change = {units: row for (measure, units), row in by_key.items() if measure.startswith("change of the score")}
    assert column([change["own selected pairs"]], "ResNet") < column([change["random pairs"]], "ResNet")


def check_texts(rows):
    assert (column(rows, "largest relative difference") < 1e-5).all()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Return a folder that the workflows share, in a process that can import the scripts; their commands are fast forks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    server = warm_server().bin
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.setattr(sys, "executable", str(server / "python"))
        patch.setenv("PATH", os.pathsep.join([str(server), os.environ["PATH"]]))
        patch.delenv("OMP_NUM_THREADS", raising=False)
        yield tmp_path_factory.mktemp("work")
    torch.set_num_threads(threads)
    for name in ("common", "naming", "published"):
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_benchmark_runs_at_a_tiny_size(script, work, tmp_path, monkeypatch):
    if script == "explorer" and shutil.which("chromium") is None:
        assert os.environ.get("NADPIPE_BROWSER") != "1"  # .ci/run sets it: there, a skip is a failure
        pytest.skip("browser: chromium is not installed (Debian package chromium)")
    options = []
    working = ("naming", "drift_detection", "published_choices", "segmentation_methods", "selection", "shift_calibration")
    if script in (*working, "signs", "sparsity", "towers"):
        options = ["--work", str(work)]
    elif script == "sparse_text" and importlib.util.find_spec("orthogonal_matching_pursuit_gpu") is None:
        options = ["--sides", "nadpipe", "scikit-learn"]
    recorded = json.loads(
        next(path for path in RESULTS if path.stem in (script, f"{script}_cpu", f"{script}_RN50")).read_text()
    )
    before = {path: path.read_bytes() for path in RESULTS}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--tiny", "--output", str(tmp_path / "results"), *options])
    runpy.run_path(str(BENCHMARKS / f"{script}.py"), run_name="__main__")
    [path] = (tmp_path / "results").iterdir()
    content = json.loads(path.read_text())
    rows = content["rows"]
    assert content.keys() == recorded.keys()
    assert {frozenset(map(without_sizes, row)) for row in rows} == {frozenset(map(without_sizes, recorded["rows"][0]))}
    assert all(math.isfinite(cell) for row in rows for cell in row.values() if not isinstance(cell, str))
    assert not any("nan" in re.split(r"\W+", cell) for row in rows for cell in row.values() if isinstance(cell, str))
    globals()[f"check_{script}"](rows)
    assert {path: path.read_bytes() for path in (BENCHMARKS / "results").glob("*.json")} == before


def without_sizes(name):
    """Return a column's name without what depends on the size of a run: numbers, and the best baseline."""
    return re.sub(r"\d[\d,.]*", "#", re.sub(r"to \w+, the best", "to the best", name))


# ----------------------------------------------------------------------------------------------------------------- page


def test_the_page_shows_the_recorded_results():
    done = subprocess.run([sys.executable, "docs/make_benchmarks_page.py"], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.decode() == (ROOT / "docs" / "benchmarks.md").read_text()


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_result_names_its_command_date_and_machine(path):
    content = json.loads(path.read_text())
    assert (ROOT / content["command"].split()[1]).is_file()
    assert content["date"]
    assert content["machine"]["processor"]
    assert content["rows"]


def test_every_benchmark_has_a_result():
    assert set(SCRIPTS) == {Path(json.loads(path.read_text())["command"].split()[1]).stem for path in RESULTS}
