"""Fixtures, tiny models and hooks of all tests.

The process that distributes the tests to workers also loads this file, so functions import packages that take seconds.
"""

import gc
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from checkout import Checkout
from filelock import FileLock

# heads, neurons, embed, side of the token grid: few and many of each, odd grids, more embed than neurons and less
SHAPES = [(2, 8, 12, 2), (4, 64, 16, 3), (1, 6, 5, 1), (16, 32, 24, 3), (3, 96, 10, 5)]


def make_pool(heads, neurons, embed, grid, seed=0):
    """Return open_clip's own attention pool with random weights and biases, and the same weights for nadpipe."""
    import torch
    from open_clip.modified_resnet import AttentionPool2d

    from nadpipe.circuit.attention import AttentionPool
    from nadpipe.circuit.readout import Readout

    torch.manual_seed(seed)
    module = AttentionPool2d(grid, neurons, heads, embed).eval().requires_grad_(False)
    for layer in (module.q_proj, module.k_proj, module.v_proj, module.c_proj):
        layer.bias.normal_()

    def split(layer):
        """Return the rows of each head of a weight and of its bias."""
        return layer.weight.view(heads, -1, neurons), layer.bias.view(heads, -1)

    value, value_bias = split(module.v_proj)
    output = torch.stack(module.c_proj.weight.chunk(heads, dim=1))
    readout = Readout(value, value_bias, output, module.c_proj.bias, layer=torch.zeros(heads, dtype=torch.long))
    pool = AttentionPool(readout, module.positional_embedding, *split(module.q_proj), *split(module.k_proj))
    return module, pool


@pytest.fixture(params=SHAPES, ids=lambda shape: "H{}C{}O{}G{}".format(*shape))
def module_and_pool(request):
    return make_pool(*request.param)


@pytest.fixture
def pool(module_and_pool):
    return module_and_pool[1]


def activations(pool, views, seed=1):
    """Return random spatial activations like those after a ReLU: none is negative, and many are zero."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randn(views, pool.tokens - 1, pool.neurons, generator=generator).clamp(min=0)


def ink(path):
    """Return the share of a picture's pixels that differ from the background, the colour of its first pixel."""
    import numpy as np
    from PIL import Image

    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return (np.abs(pixels - pixels[0, 0]).max(axis=2) > 16).mean()


TINY = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 4, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def tiny_clip():
    """A random CLIP-ResNet with 4 heads and 128 neurons on 64-pixel images, its batch norms unlike the identity."""
    import open_clip
    import torch

    torch.manual_seed(3)
    clip = open_clip.CLIP(**TINY).eval().requires_grad_(False)
    for block in (clip.visual.layer1, clip.visual.layer2, clip.visual.layer3, clip.visual.layer4):
        block[0].bn3.weight.normal_()
        block[0].bn2.bias.normal_()
    clip.train()
    for _ in range(30):  # running means and variances like those of a trained model, so that images differ in activations
        clip.encode_image(torch.randn(16, 3, 64, 64))
    clip.eval()
    for bias in ("q_proj", "k_proj", "v_proj", "c_proj"):
        getattr(clip.visual.attnpool, bias).bias.normal_(std=0.1)
    return clip


TINY_VIT = TINY | {
    "vision_cfg": {
        "image_size": 70,
        "patch_size": 16,
        "layers": 4,
        "width": 32,
        "head_width": 8,
        "mlp_ratio": 3,
        "patch_dropout": 0.5,
    },
    "quick_gelu": True,
}


def stir(module, seed=0):
    """Move norms, biases and layer scales of a module away from their initial values."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, values in module.named_parameters():
        if values.ndim == 1:
            offset = 1 if name.endswith("weight") or name.endswith("gamma") else 0
            values.data = offset + 0.3 * torch.randn(values.shape, generator=generator)
    return module


@pytest.fixture(scope="session")
def tiny_vit():
    """Return a random CLIP-ViT with 4 blocks of 4 heads, 96 neurons each, on images that are no whole number of tokens."""
    import open_clip
    import torch

    torch.manual_seed(5)
    clip = open_clip.CLIP(**TINY_VIT).eval().requires_grad_(False)
    stir(clip.visual)
    return clip


@pytest.fixture
def vit_run(tmp_path, tiny_vit):
    """Return a working folder with the tiny vision transformer, and its stages for the neurons of block 1 of 4."""
    from stage_run import Run  # imports all stages

    return Run(tmp_path, tiny_vit, TINY_VIT, block=1)


@pytest.fixture
def run(tmp_path, tiny_clip):
    """Return a working folder with the tiny model, and its stages."""
    from stage_run import Run  # imports all stages

    return Run(tmp_path, tiny_clip)


FIRST = (
    *("test_changes", "test_slurm", "test_kills", "test_s3", "test_benchmarks", "test_docs", "test_workflow", "test_pages"),
    *("test_looks", "test_new_analysis"),
)
WHOLE_RUNS = {"finished", "checkout", "browser", "run", "vit_run", "family_run"}  # fixtures


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of workers: none for one or two files, one per core for quick tests, else one more: some tests wait."""
    few = config.args_source is pytest.Config.ArgsSource.ARGS and len(config.args) <= 2
    waiting = 0 if config.option.markexpr == "quick" else 1
    return 0 if few else os.cpu_count() + waiting


def _is_never_quick(path: Path) -> bool:
    """Return True for a file whose tests run stages, Snakemake or a browser, or are of hostile input."""
    return path.stem in FIRST or path.parent.name == "hostile"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import files without quick tests if only quick tests run."""
    return True if config.option.markexpr == "quick" and _is_never_quick(collection_path) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest. Mark tests as quick that run no stages, no browser and no hostile input."""
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    for item in items:
        whole_run = _is_never_quick(item.path) or WHOLE_RUNS & set(item.fixturenames)
        if not whole_run and item.get_closest_marker("slow") is None:
            item.add_marker("quick")


def pytest_configure() -> None:
    """Keep the bytecode of the package and of the tests: hundreds of processes would compile it again."""
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over modules and tests, which live as long as the process."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the garbage collector find everything again: libraries report what is left at exit."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread_per_worker() -> None:
    """Use one thread per worker, so that parallel workers do not compete for cores."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Return a finished run of the small demo, made once for all workers. Tests must not change it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with FileLock(folder / "finished.lock"):
        if (folder / "finished.log").exists():
            return Checkout.open(folder / "finished")
        checkout = Checkout(folder / "finished")
        done = checkout.run("all")
        (folder / "finished.log").write_text(done.stderr)
        return checkout


@pytest.fixture(scope="module")
def checkout(finished: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Return a copy of the finished run for the tests of one file, which may change it."""
    return finished.copy(tmp_path_factory.mktemp("checkout"))


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Callable[[str, bool], None]:
    """Return a function that counts one hostile case: its kind, and whether it was refused with a one-line message."""
    return lambda kind, refused: record_property("hostile", (kind, refused))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many hostile cases of each kind were tried and refused."""
    reports = [report for outcomes in terminalreporter.stats.values() for report in outcomes]
    properties = [pair for report in reports if getattr(report, "when", "") == "call" for pair in report.user_properties]
    cases = [tuple(case) for name, case in properties if name == "hostile"]
    tried, refused = Counter(kind for kind, _ in cases), Counter(kind for kind, was_refused in cases if was_refused)
    if tried:
        terminalreporter.section("hostile input: kind, tried, refused")
    for kind, count in sorted(tried.items()):
        terminalreporter.line(f"{kind}: {count} tried, {refused[kind]} refused")
