"""Provide what all benchmarks share: options, random models of the published sizes, time and peak memory, and the report.

Every benchmark has the options --tiny, which runs it in seconds to test it, and --output, the folder of its JSON file.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image
from scipy import stats

from nadpipe.circuit import attention as pooling
from nadpipe.circuit import readout as circuit
from nadpipe.circuit.attention import AttentionPool
from nadpipe.circuit.readout import Readout
from nadpipe.config import check
from nadpipe.data.layouts import IMAGE_SUFFIXES
from nadpipe.demo.world import Odds, draw_scene
from nadpipe.store.arrays import create_zarr
from nadpipe.store.kinds.features import FEATURES
from nadpipe.store.pool import write_pool
from nadpipe.store.stamp import Stamp

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
PUBLISHED = {  # heads, neurons, embed, spatial tokens of OpenAI's models
    "RN50": (32, 2048, 1024, 49),
    "RN50x16": (48, 3072, 768, 144),
    "RN50x64": (64, 4096, 1024, 196),
}
TINY = "tiny"  # the architecture of tiny runs
ARCHITECTURES = PUBLISHED | {TINY: (4, 128, 12, 4)}
TINY_CONFIG = {  # of open_clip, with the sizes of ARCHITECTURES[TINY]
    "embed_dim": 12,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 4, "head_width": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TINY_DEMO = {  # sections of config.yaml
    "demo": {"discovery_images": 24, "segmentation_images": 4, "monitoring_images_per_year": 4},
    "directions": {"top_images": 8},
    "registers": {"images": 8},
    "features": {"workers": 0},
    "text": {"cache": None, "templates": ["{}"]},
    "assignments": {"atoms": 2, "sparse_share": 0.02},
    "analyses": {"atoms": [1, 2]},
}
STAMP = Stamp(model="0" * 64, architecture="random")


# ------------------------------------------------------------------------------------------------------------- options


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="run in seconds to test the script; its numbers mean nothing")
    parser.add_argument(
        "--output", type=Path, help="folder of the JSON file; by default benchmarks/results, or none with --tiny"
    )
    return parser


def parse(parser: argparse.ArgumentParser, **tiny: Any) -> argparse.Namespace:
    """Parse the command line. `tiny`: defaults that --tiny replaces."""
    if parser.parse_known_args()[0].tiny:
        parser.set_defaults(**tiny)
    return parser.parse_args()


# ------------------------------------------------------------------------------------------------------- random inputs


def random_pool(architecture: str, seed: int = 0) -> AttentionPool:
    """Return an attention pool with random weights, scaled so that values keep their size."""
    heads, neurons, embed, spatial = ARCHITECTURES[architecture]
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * neurons**-0.5

    def weight_and_bias() -> tuple[torch.Tensor, torch.Tensor]:
        return normal(neurons, neurons).unflatten(0, (heads, -1)), normal(neurons).unflatten(0, (heads, -1))

    value, value_bias = weight_and_bias()
    readout = Readout(
        value=value,
        value_bias=value_bias,
        output=normal(embed, neurons).unflatten(1, (heads, -1)).transpose(0, 1),
        output_bias=normal(embed),
        layer=torch.zeros(heads, dtype=torch.int64),
    )
    query, query_bias = weight_and_bias()
    key, key_bias = weight_and_bias()
    return AttentionPool(readout, normal(spatial + 1, neurons), query, query_bias, key, key_bias)


def random_activations(pool: AttentionPool, views: int, seed: int = 1) -> torch.Tensor:
    """Return activations (view, spatial, neuron) as after a ReLU: half of them are zero."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(views, pool.tokens - 1, pool.neurons, generator=generator).clamp(min=0)


def save_pool(pool: AttentionPool, path: Path) -> None:
    """Write an attention pool as `nadpipe export-readout` does."""
    write_pool(path, pool, STAMP, {"heads": pool.heads})


def write_random_features(
    pool: AttentionPool, views: int, dtype: str, path: Path, block: int = 32, images: str = "random"
) -> None:
    """Write a features store of random activations with their embeddings, `block` views at a time.

    images: fingerprint of the manifest.
    """
    sizes = {"view": views, "token": pool.tokens - 1, "neuron": pool.neurons, "embed": pool.embed}
    attributes = {"shard": 0, "shards": 1, "images": images, "precision": "float32", "views": "sliding", "block": 0}
    attributes |= {"parts": [], "recipes": []}  # of a CLIP-ResNet
    options = {"attributes": attributes, "omit": FEATURES.optional}
    with create_zarr(path, FEATURES, STAMP, sizes, {"activation": dtype}, **options) as store:
        for start in range(0, views, block):
            z = random_activations(pool, min(block, views - start), seed=start)
            stored = store.as_stored("activation", z)
            embedding = embed(z, pool)
            rounding = circuit.residual(embed(stored.float(), pool), embedding)
            store.append(activation=stored, embedding=embedding, rounding=rounding)
        side = pool.grid * 32
        crop = {"crop_top": 0, "crop_left": 0, "crop_size": side, "resized_height": side, "resized_width": side}
        store.write("image_id", range(views))
        for name, value in crop.items():
            store.write(name, [value] * views)


def embed(z: torch.Tensor, pool: AttentionPool) -> torch.Tensor:
    """Compute the embeddings of a pool from activations."""
    return circuit.sum_pairs(circuit.coefficients(pooling.trace(z, pool), pool.readout), pool.readout)


def random_checkpoint(architecture: str | dict[str, Any], folder: Path) -> tuple[torch.nn.Module, dict[str, str]]:
    """Save a CLIP model with random weights as safetensors.

    architecture: name, or model config of open_clip. Returns the model, and the options `architecture` and `pretrained` with
    which nadpipe loads it.
    """
    import open_clip  # takes seconds
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = TINY_CONFIG if architecture == TINY else architecture
    if isinstance(config, dict):
        clip = open_clip.CLIP(**config)
        (folder / "model.json").write_text(json.dumps(config))
        architecture = str(folder / "model.json")
    else:
        clip = open_clip.create_model(config)
    clip.eval().requires_grad_(False)
    for name, parameter in clip.visual.named_parameters():
        if name.endswith("bn3.weight"):  # zero at first, so that residual blocks would do nothing
            parameter.uniform_(0.2, 0.6)
    path = folder / "model.safetensors"
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, path)
    return clip, {"architecture": architecture, "pretrained": str(path)}


def write_photos(source: Path | None, count: int, folder: Path) -> list[Path]:
    """Fill a new folder with `count` images and return their paths.

    source: folder of photographs, at any depth. They are linked under several names if there are too few. By default, scenes of
    500 × 375 pixels are drawn.
    """
    folder.mkdir(parents=True)
    if source is None:
        return [_draw_photo(number, folder / f"{number}.jpg") for number in range(count)]
    photos = [path.resolve() for path in sorted(source.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not photos:
        sys.exit(f"{source}: no images; name a folder of photographs")
    paths = []
    for number, photo in enumerate(itertools.islice(itertools.cycle(photos), count)):
        paths.append(folder / f"{number}{photo.suffix.lower()}")
        paths[-1].symlink_to(photo)
    return paths


def _draw_photo(number: int, path: Path) -> Path:
    Image.fromarray(draw_scene(np.random.default_rng(number), 375, 500, Odds()).image).save(path, quality=94)
    return path


# ------------------------------------------------------------------------------------------------------------ commands


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Return the wall time of one call in seconds, and its result."""
    start = time.perf_counter()
    result = function(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


_MEASURE = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - start, usage.ru_maxrss / 1024)
sys.exit(status != 0)
"""  # in a small process, because the peak of a child includes the memory of its parent at the start


def run_command(*arguments: str | Path) -> tuple[float, float]:
    """Return wall time in seconds and peak memory in MiB of a command. If it fails, the benchmark ends."""
    command = [str(argument) for argument in arguments]
    done = subprocess.run([sys.executable, "-c", _MEASURE, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak)


def nadpipe(command: str, **options: Any) -> tuple[float, float]:
    """Return wall time and peak memory of one nadpipe command. An option may be a list."""
    arguments: list[str] = []
    for name, value in options.items():
        values = value if isinstance(value, list | tuple) else [value]
        arguments += [f"--{name.replace('_', '-')}", *map(str, values)]
    return run_command(sys.executable, "-m", "nadpipe", command, *arguments)


def demo_config(tiny: bool) -> dict[str, Any]:
    """Return the demo's config with every key, with few images if `tiny`."""
    config = check(yaml.safe_load((ROOT / "config.yaml").read_text()))
    if tiny:
        for section, keys in TINY_DEMO.items():
            config[section].update(keys)
        config["datasets"]["discovery"]["shards"] = 1
    return config


def add_work(parser: argparse.ArgumentParser) -> None:
    """Add the option --work, which `working_folder` takes."""
    parser.add_argument("--work", type=Path, help="folder to run the workflow in, which reuses results; by default a new one")


@contextlib.contextmanager
def working_folder(work: Path | None) -> Iterator[None]:
    """Change to a folder; by default to a new one that is deleted in the end."""
    with contextlib.ExitStack() as stack:
        folder = work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(contextlib.chdir(folder))
        yield


def run_workflow(config: dict[str, Any], *targets: str) -> None:
    """Make some targets with the workflow in the current folder, where it also writes config.yaml."""
    Path("config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    place = ("--directory", Path.cwd(), "--configfile", Path.cwd() / "config.yaml")
    run_command(sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "all", *targets, *place)


def run_with_random_model(config: dict[str, Any], architecture: str, *targets: str) -> Path:
    """Make some targets of a workflow with random weights in the folder `random`, and return its folder of results."""
    folder = Path.cwd() / "random"
    folder.mkdir(exist_ok=True)
    _, model = random_checkpoint(architecture, folder)
    with contextlib.chdir(folder):
        shares = {"segmentation": {**config["segmentation"], "k": [0.1356]}, "shift": {**config["shift"], "k": 0.03}}
        run_workflow(config | {"model": model} | shares, *targets)  # the demo's numbers of pairs may exceed this model's
    return folder / "results"


# ---------------------------------------------------------------------------------------------------------- statistics


def welch_pairs(group: torch.Tensor, reference: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Compute the difference of means and the p of Welch's test per pair, with the interface of `compare_pairs`."""
    group_value, base = group.double().numpy(), reference.double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # pairs that never vary
        return group_value.mean(0) - base.mean(0), stats.ttest_ind(group_value, base, equal_var=False).pvalue


def interval(count: int, trials: int) -> str:
    """Return a share with its exact 95% binomial interval, such as `0.04 (0.00 to 0.14)`."""
    exact = stats.binomtest(count, trials).proportion_ci(0.95)
    return f"{count / trials:.2f} ({exact.low:.2f} to {exact.high:.2f})"


# -------------------------------------------------------------------------------------------------------------- report


def machine() -> dict[str, Any]:
    """Describe the machine and the versions that matter for the numbers."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    capabilities = torch.cpu.get_capabilities().items()
    vector_units = [name for name, present in capabilities if present is True and name.startswith(("amx", "avx"))]
    return {
        "processor": models[0].split(":")[1].strip() if models else platform.processor(),
        "vector units": " ".join(sorted(vector_units)),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def report(given: argparse.Namespace, name: str, title: str, rows: list[dict[str, Any]]) -> None:
    """Print the table of a benchmark and write it to <output>/<name>.json.

    given: parsed options. name: of the file; docs/make_benchmarks_page.py finds the heading by it.
    """
    content = {
        "name": name,
        "title": title,
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "rows": rows,
    }
    folder = given.output or (None if given.tiny else RESULTS)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\n{title}\n")
    print(pd.DataFrame(rows).to_string(index=False))
