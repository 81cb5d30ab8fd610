"""Directions of all pairs of RN50x16: an SVD per pair over the dense tensor as published, against one pass over coefficients.

python benchmarks/directions.py
"""

import argparse

import published
import torch
from common import PUBLISHED, random_pool, report, timed

from nadpipe.circuit import attention, directions

BLOCK = 96  # views at a time, as shards of the store come


def fit(coefficient: torch.Tensor, pool: attention.AttentionPool) -> list[torch.Tensor]:
    """nadpipe's side: the directions of each head's pairs."""
    extremes = directions.Extremes(50)
    for block in coefficient.split(BLOCK):
        extremes.add(block)
    deviation = extremes.farthest()
    writes = (attention.write_vectors(pool, head) for head in range(pool.heads))
    return [directions.fit_pairs(deviation[:, head], write).direction for head, write in enumerate(writes)]


def main() -> None:
    """Compare the time for all pairs (the published side from a sample) and the directions."""
    options = argparse.ArgumentParser()
    options.add_argument("--images", type=int, default=1000)
    options.add_argument("--sample", type=int, default=200, help="pairs that the published side fits")
    given = options.parse_args()
    pool = random_pool("RN50x16")
    heads, neurons, _, _ = PUBLISHED["RN50x16"]
    coefficient = torch.rand(given.images, heads, neurons, generator=torch.Generator().manual_seed(2)).square()
    chosen = torch.randint(heads * neurons, (given.sample,), generator=torch.Generator().manual_seed(3)).tolist()
    constant = attention.pair_constants(pool)
    fits: dict[int, torch.Tensor] = {}
    slow = 0.0
    for pair in chosen:
        head, neuron = divmod(pair, neurons)
        write = attention.write_vectors(pool, head)[neuron]
        dense = coefficient[:, head, neuron, None] * write + constant[head]  # as read from the dense file
        took, fits[pair] = timed(published.pair_direction, dense, 50)
        slow += took
    fast, own = timed(fit, coefficient, pool)
    cosine = min(float(own[pair // neurons][pair % neurons] @ direction) for pair, direction in fits.items())
    scaled = slow / given.sample * heads * neurons
    rows = [
        {
            "side": f"published, SVD per pair ({given.sample} pairs measured)",
            "all 147,456 pairs, s": round(scaled),
            "times faster": 1,
        },
        {"side": "nadpipe, one pass", "all 147,456 pairs, s": round(fast, 1), "times faster": round(scaled / fast)},
    ]
    for row in rows:
        row["smallest cosine of the two"] = f"{cosine:.6f}"
    about = (
        f"Directions of all pairs of RN50x16 from {given.images} images; the published side without reading its 453 MB an image"
    )
    report("directions", about, rows)


if __name__ == "__main__":
    main()
