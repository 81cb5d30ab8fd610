"""Comparisons of groups that differ in nothing raise false alarms at the level of the test, with the demo's coefficients."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from nadpipe.circuit import attention, readout, shift
from nadpipe.demo.data import DRIFTS
from nadpipe.demo.world import Odds, draw_scene
from nadpipe.stages.make_demo_model import make_demo_model
from nadpipe.towers.model import load_model

pytestmark = pytest.mark.slow
RUNS, LEVEL = 30, 0.05
SIZES = [(100, 100), (20, 180), (20, 280)]  # images of the group and of its reference


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Return the coefficients (image, pair) of 300 images of the demo's first year and of 60 images of its last year."""
    folder = tmp_path_factory.mktemp("demo")
    make_demo_model(folder / "w.safetensors", folder / "m.json")
    tower = load_model(str(folder / "m.json"), str(folder / "w.safetensors"), "cpu").image_tower()
    side = tower.preprocessing.image_size
    coefficient = []
    for year, count in enumerate((300, 60)):
        odds = Odds(weight={word: weights[year] for word, weights in DRIFTS.items()})
        scenes = [draw_scene(np.random.default_rng([5, year, number]), side, side, odds).image for number in range(count)]
        blocks = []
        for batch in torch.as_tensor(np.stack(scenes)).split(60):
            with torch.inference_mode():
                trace = attention.view_trace(tower.features(tower.preprocessing.normalise(batch)), tower.pool)
                blocks.append(readout.coefficients(trace, tower.pool.readout).flatten(1))
        coefficient.append(torch.cat(blocks))
    return coefficient


def welch(group, reference):
    with np.errstate(invalid="ignore", divide="ignore"):
        return None, stats.ttest_ind(group.double().numpy(), reference.double().numpy(), equal_var=False).pvalue


def check_level(compare, coefficient, size, reference_size):
    """Check that random splits have discoveries in no more runs than the level allows (binomial bound), and few of them."""
    found = []
    for run in range(RUNS):
        order = np.random.default_rng([run, size]).permutation(len(coefficient))[: size + reference_size]
        _, p = compare(coefficient[order[:size]], coefficient[order[size:]])
        found.append((shift.benjamini_hochberg(p) < LEVEL).sum())
    assert np.count_nonzero(found) <= stats.binom.ppf(0.999, RUNS, LEVEL)
    assert np.mean(found) < 5


@pytest.mark.parametrize(("size", "reference_size"), SIZES)
def test_pairs_keep_the_level_on_random_splits(images, size, reference_size):
    check_level(shift.compare_pairs, images[0], size, reference_size)


@pytest.mark.parametrize(("size", "reference_size"), SIZES[1:])
def test_the_check_of_the_level_fails_for_welch(images, size, reference_size):
    with pytest.raises(AssertionError):
        check_level(welch, images[0], size, reference_size)


def test_an_unmoved_group_beside_a_moved_one_has_few_discoveries(images):
    first, last = images
    unmoved, unmoved_pooled, moved = [], [], []
    for run in range(6):
        order = torch.from_numpy(np.random.default_rng(run).permutation(len(first)))
        groups = {"moved": last, "also moved": last, "unmoved": first[order[:20]]}
        p = {name: shift.compare_pairs(group, first[order[20:]])[1] for name, group in groups.items()}
        table = pd.concat(pd.DataFrame({"group": name, "p": values}) for name, values in p.items())
        table["q"], table["pooled"] = shift.adjust_by_group(table), shift.benjamini_hochberg(table["p"].to_numpy())
        count = (table.set_index("group")[["q", "pooled"]] < LEVEL).groupby("group").sum()
        moved.append(count.loc["moved", "q"])
        unmoved.append(count.loc["unmoved", "q"])
        unmoved_pooled.append(count.loc["unmoved", "pooled"])
    assert min(moved) > 300
    assert np.count_nonzero(unmoved) <= 2
    assert np.mean(unmoved) < 5
    assert np.mean(unmoved_pooled) > 5  # one q over all groups would be wrong: it depends on the other groups
