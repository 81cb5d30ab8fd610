"""Segmentation logits: gather per class as published, against a sparse product.

python benchmarks/segmentation.py
"""

import argparse
from collections.abc import Callable

import published
import torch
from common import random_activations, random_pool, report, timed
from torch.profiler import ProfilerActivity, profile

from nadpipe.circuit import naming, segmentation


def allocated(function: Callable[[], torch.Tensor]) -> float:
    """The largest single allocation of a call, MiB: what the form of the computation needs at least."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    return max(event.cpu_memory_usage for event in recorded.events()) / 2**20


def main() -> None:
    """Compare time and memory of one view, and the logits."""
    options = argparse.ArgumentParser()
    options.add_argument("--classes", type=int, default=59)
    options.add_argument("--k", type=int, default=20000)
    given = options.parse_args()
    pool = random_pool("RN50x16")
    generator = torch.Generator().manual_seed(4)
    order = torch.rand(given.classes, pool.heads * pool.neurons, generator=generator).argsort(dim=1)[:, : given.k]
    chosen = naming.Selection(torch.zeros(order.shape), order // pool.neurons, order % pool.neurons)
    text = naming.unit(torch.randn(given.classes, len(pool.c_bias), generator=generator))
    value_mean = torch.zeros(pool.heads, pool.tokens, pool.neurons // pool.heads)
    query = segmentation.Query(pool, text, value_mean, sink=None)
    pairs = segmentation.selected_pairs(chosen, given.k, pool.heads, pool.neurons)
    z = random_activations(pool, 1)
    similarity = segmentation.Tokens(z, query).similarity

    def gather() -> torch.Tensor:
        return published.gathered_logits(z[0], similarity[0], chosen.head, chosen.neuron)

    def product() -> torch.Tensor:
        return (similarity * segmentation.Tokens(z, query).activation(pairs)).sum(2)[0] / given.k

    difference = float((gather() - product()).abs().max())
    slow, fast = (min(timed(side)[0] for _ in range(repeats)) for side, repeats in ((gather, 3), (product, 10)))
    rows = [
        {
            "side": name,
            "s a view": round(took, 4),
            "largest tensor, MiB": round(allocated(side), 1),
            "times faster": round(slow / took, 1),
            "largest difference": f"{difference:.1e}",
            "largest logit": f"{float(gather().abs().max()):.1e}",
        }
        for name, side, took in (("published, gather", gather, slow), ("nadpipe, sparse product", product, fast))
    ]
    about = f"Logits of one view from its activations and head similarities, RN50x16, {given.classes} classes, k {given.k}"
    report("segmentation", about, rows)


if __name__ == "__main__":
    main()
