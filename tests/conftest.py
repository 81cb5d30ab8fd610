import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import open_clip
import pytest
import torch
import yaml
from open_clip.modified_resnet import AttentionPool2d

from nadpipe.attnpool import AttentionPool

# heads, neurons, embed, side of the token grid: few and many of each, odd grids, more embed than neurons and less
SHAPES = [(2, 8, 12, 2), (4, 64, 16, 3), (1, 6, 5, 1), (16, 32, 24, 3), (3, 96, 10, 5)]


def make_pool(heads, neurons, embed, grid, seed=0):
    """open_clip's own attention pool with random weights and biases, and the same weights for nadpipe."""
    torch.manual_seed(seed)
    module = AttentionPool2d(grid, neurons, heads, embed).eval().requires_grad_(False)
    for layer in (module.q_proj, module.k_proj, module.v_proj, module.c_proj):
        layer.bias.normal_()
    weights = {"q": module.q_proj, "k": module.k_proj, "v": module.v_proj, "c": module.c_proj}
    pool = AttentionPool(
        heads=heads,
        positional_embedding=module.positional_embedding.detach(),
        **{f"{name}_weight": layer.weight.detach() for name, layer in weights.items()},
        **{f"{name}_bias": layer.bias.detach() for name, layer in weights.items()},
    )
    return module, pool


@pytest.fixture(params=SHAPES, ids=lambda shape: "H{}C{}O{}G{}".format(*shape))
def module_and_pool(request):
    return make_pool(*request.param)


@pytest.fixture
def pool(module_and_pool):
    return module_and_pool[1]


def activations(pool, views, seed=1):
    """Random spatial activations, not negative, as after a ReLU, many of them zero."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(views, pool.tokens - 1, pool.neurons, generator=generator).clamp(min=0)


TINY = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 4, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def tiny_clip():
    """A random CLIP-ResNet with 4 heads and 128 neurons on 64-pixel images, its batch norms unlike the identity."""
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


ROOT = Path(__file__).parents[1]
SMALL = {
    "demo": {"discovery_images": 60, "segmentation_images": 8, "monitoring_images_per_year": 30},
    "directions": {"top_images": 20, "components": 3},
    "text": {"cache": None},  # with one, last bits depend on which set of texts was embedded first
    "shift": {"resamples": 200},
    "segmentation": {"overlays": 3},
    "registers": {"images": 20},
}


class Checkout:
    """A copy of the workflow with a small demo, and ways to run and to change it."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("rules", "nadpipe", "envs", "profiles"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("Snakefile", "config.yaml", "README.md"):
            shutil.copy(ROOT / name, folder / name)
        self.config = yaml.safe_load((ROOT / "config.yaml").read_text())
        for section, keys in SMALL.items():
            self.config[section].update(keys)
        self.config["datasets"]["more"] = self.config["datasets"]["segmentation"]
        self.write_config(self.config)

    @classmethod
    def at(cls, folder):
        """A copy that exists."""
        made = cls.__new__(cls)
        made.folder = folder
        return made

    def write_config(self, config):
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def _command(self, *arguments):
        """Snakemake as the README runs it, on this copy's code: the command and its environment."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PATH": path}
        return [sys.executable, "-m", "snakemake", "--cores", "2", *arguments], environment

    def start(self, *arguments):
        """Begin a run."""
        command, environment = self._command(*arguments)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, cwd=self.folder, env=environment, **quiet)

    def run(self, *arguments, check=True, timeout=None, **variables):
        """Run to the end, with more variables in the environment."""
        command, environment = self._command(*arguments)
        environment |= variables
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0 or not check, done.stdout[-3000:] + done.stderr[-6000:]
        return done

    def plan(self, *arguments):
        """Rules that would run, with the number of their jobs."""
        done = self.run("-n", "all", *arguments)
        text = done.stdout + done.stderr
        table = re.search(r"^Job stats:\n.*\n-.*\n((?:\w+ +\d+\n)+)", text, re.MULTILINE)
        if table is None:
            assert "Nothing to be done" in text
            return {}
        jobs = dict(line.split() for line in table[1].splitlines())
        return {rule: int(count) for rule, count in jobs.items() if rule not in ("all", "total")}


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    made = Checkout(tmp_path_factory.mktemp("checkout"))
    made.first = made.run("all")
    return made


@pytest.fixture(scope="session", autouse=True)
def on_slurm(request, tmp_path_factory):
    """The small demo on a Slurm of one node, if a test of it is to run: a future of the checkout, the job that was killed, and
    the cluster. It begins with the session and goes on beside other tests, for it waits more than it works."""
    if all(item.path.name != "test_slurm.py" for item in request.session.items):
        yield None
        return
    import slurm  # which itself needs Checkout from here

    folder, daemons, started = tmp_path_factory.mktemp("submitted"), tmp_path_factory.mktemp("slurm"), []

    def run():
        started.append(slurm.Slurm(daemons))
        return Checkout.at(folder), slurm.run_the_demo(folder, started[0], "results/segmentation.csv"), started[0]

    with ThreadPoolExecutor(1) as pool:
        yield None if slurm.missing() else pool.submit(run)
    for cluster in started:
        cluster.stop()
