"""Compare two ways to compute segmentation logits: a gather per class, as published, and a sparse product.

python benchmarks/segmentation.py
"""

from collections.abc import Callable

import published
import torch
from common import ARCHITECTURES, TINY, make_parser, parse, random_activations, random_pool, report, timed
from torch.profiler import ProfilerActivity, profile

from nadpipe.circuit import segmentation
from nadpipe.circuit.accumulators import Selection
from nadpipe.circuit.naming import normalise


def main() -> None:
    """Compare time and memory for one view, and the logits."""
    parser = make_parser(__doc__)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="RN50x16")
    parser.add_argument("--classes", type=int, default=59)
    parser.add_argument("--k", type=int, default=20000, help="pairs per class")
    given = parse(parser, architecture=TINY, classes=3, k=40)
    pool = random_pool(given.architecture)
    generator = torch.Generator().manual_seed(4)
    order = torch.rand(given.classes, pool.heads * pool.neurons, generator=generator).argsort(dim=1)[:, : given.k]
    selection = Selection(torch.zeros(order.shape), order // pool.neurons, order % pool.neurons)
    text = normalise(torch.randn(given.classes, pool.embed, generator=generator))
    value_mean = torch.zeros(pool.heads, pool.tokens, pool.readout.width)
    query = segmentation.Query(pool, text, value_mean, sink=None)
    pairs = segmentation.selected_pairs(selection, given.k, pool.heads, pool.neurons)
    z = random_activations(pool, 1)
    similarity = segmentation.Tokens(z, query).similarity

    def gather() -> torch.Tensor:
        return published.gathered_logits(z[0], similarity[0], selection.head, selection.neuron)

    def product() -> torch.Tensor:
        return (similarity * segmentation.Tokens(z, query).activation(pairs)).sum(2)[0] / given.k

    difference = float((gather() - product()).abs().max())
    gather_seconds, product_seconds = (
        min(timed(side)[0] for _ in range(repeats)) for side, repeats in ((gather, 3), (product, 10))
    )
    sides = (("published, gather", gather, gather_seconds), ("nadpipe, sparse product", product, product_seconds))
    rows = [
        {
            "side": name,
            "s per view": round(seconds, 4),
            "largest tensor, MiB": round(largest_allocation(side), 1),
            "speed-up": round(gather_seconds / seconds, 1),
            "largest difference": f"{difference:.1e}",
            "largest logit": f"{float(gather().abs().max()):.1e}",
        }
        for name, side, seconds in sides
    ]
    title = (
        f"Logits of one view from its activations and head similarities, {given.architecture}, {given.classes} classes, "
        f"k {given.k}"
    )
    report(given, "segmentation", title, rows)


def largest_allocation(function: Callable[[], torch.Tensor]) -> float:
    """Return the largest single allocation of a call in MiB, a lower bound of its peak memory."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    return max(event.cpu_memory_usage for event in recorded.events()) / 2**20


if __name__ == "__main__":
    main()
