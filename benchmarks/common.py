"""What the benchmarks share: random models at the published sizes, time and peak memory, one table printed and kept as JSON."""

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pandas as pd
import torch
from safetensors.torch import save_file

from nadpipe.circuit import attention
from nadpipe.circuit.attention import AttentionPool
from nadpipe.store.arrays import create_zarr
from nadpipe.store.kinds.features import FEATURES
from nadpipe.store.kinds.model import READOUT
from nadpipe.store.stamp import Stamp

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
PUBLISHED = {  # heads, neurons, embed, spatial tokens of OpenAI's models
    "RN50": (32, 2048, 1024, 49),
    "RN50x16": (48, 3072, 768, 144),
    "RN50x64": (64, 4096, 1024, 196),
}
STAMP = Stamp(model="0" * 64, architecture="random")


def random_pool(architecture: str, seed: int = 0) -> AttentionPool:
    """An attention pool of a published size with random weights, scaled so that values keep their size."""
    heads, neurons, embed, spatial = PUBLISHED[architecture]
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * neurons**-0.5

    return AttentionPool(
        heads=heads,
        positional_embedding=normal(spatial + 1, neurons),
        **{f"{name}_weight": normal(neurons, neurons) for name in "qkv"},
        c_weight=normal(embed, neurons),
        **{f"{name}_bias": normal(neurons) for name in "qkv"},
        c_bias=normal(embed),
    )


def random_activations(pool: AttentionPool, views: int, seed: int = 1) -> torch.Tensor:
    """Activations (view, spatial, neuron) as after a ReLU: half of them zero."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(views, pool.tokens - 1, pool.neurons, generator=generator).clamp(min=0)


def save_pool(pool: AttentionPool, path: Path) -> None:
    """An attention pool as `nadpipe export-readout` writes it."""
    sizes = {"token": pool.tokens, "neuron": pool.neurons, "out": pool.neurons, "embed": len(pool.c_bias)}
    with create_zarr(path, READOUT, STAMP, sizes, attributes={"heads": pool.heads}) as store:
        for name in ("positional_embedding", *(f"{p}_{part}" for p in "qkvc" for part in ("weight", "bias"))):
            store.write(name, getattr(pool, name))


def write_random_features(pool: AttentionPool, views: int, dtype: str, path: Path, block: int = 32) -> None:
    """A features store of random activations, with the embedding that the pool makes of them."""
    sizes = {"view": views, "token": pool.tokens - 1, "neuron": pool.neurons, "embed": len(pool.c_bias)}
    about = {"shard": 0, "shards": 1, "images": "random"}
    with create_zarr(path, FEATURES, STAMP, sizes, {"activation": dtype}, attributes=about) as store:
        for start in range(0, views, block):
            z = random_activations(pool, min(block, views - start), seed=start)
            stored = store.as_stored("activation", z)
            embedding = _embed(z, pool)
            rounding = attention.residual(_embed(stored.float(), pool), embedding)
            store.append(activation=stored, embedding=embedding, rounding=rounding)
        side = round((pool.tokens - 1) ** 0.5) * 32
        same = {"crop_top": 0, "crop_left": 0, "crop_size": side, "resized_height": side, "resized_width": side}
        store.write("image_id", range(views))
        for name, value in same.items():
            store.write(name, [value] * views)


def _embed(z: torch.Tensor, pool: AttentionPool) -> torch.Tensor:
    x = attention.tokens(z, pool)
    return attention.sum_pairs(attention.coefficients(attention.attention(x, pool), x), pool)


def random_checkpoint(architecture: str, path: Path) -> torch.nn.Module:
    """A CLIP-ResNet of open_clip with random weights, its residual branches alive, saved as safetensors."""
    torch.manual_seed(0)
    clip = open_clip.create_model(architecture).eval().requires_grad_(False)
    for name, parameter in clip.visual.named_parameters():
        if name.endswith("bn3.weight"):  # open_clip starts them at zero, so that the blocks would do nothing
            parameter.uniform_(0.2, 0.6)
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, path)
    return clip


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Wall time of one call in seconds, and what it returned."""
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
"""  # a small process: the peak of a child counts from the memory of its parent


def run_command(*arguments: str | Path) -> tuple[float, float]:
    """Wall time in seconds and peak memory in MiB of a command in a process of its own; its failure ends the benchmark."""
    command = [str(part) for part in arguments]
    done = subprocess.run([sys.executable, "-c", _MEASURE, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    took, peak = done.stdout.split()
    return float(took), float(peak)


def nadpipe(*arguments: str | Path) -> tuple[float, float]:
    """Wall time and peak memory of one nadpipe command."""
    return run_command(sys.executable, "-m", "nadpipe", *arguments)


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    able = [name for name, has in torch.cpu.get_capabilities().items() if has is True and name.startswith(("amx", "avx"))]
    return {
        "processor": found[0].split(":")[1].strip() if found else platform.processor(),
        "vector units": " ".join(sorted(able)),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def report(name: str, about: str, rows: list[dict[str, Any]]) -> None:
    """Print the table of a benchmark and write it to benchmarks/results/<name>.json."""
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    RESULTS.mkdir(exist_ok=True)
    content = {
        "name": name,
        "about": about,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "rows": rows,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\n{about}\n")
    print(pd.DataFrame(rows).to_string(index=False))
