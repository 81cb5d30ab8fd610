"""Compare two ways to fit the directions of all pairs: an SVD per pair over the dense tensor, as published, and one pass.

python benchmarks/directions.py
"""

import published
import torch
from common import ARCHITECTURES, TINY, make_parser, parse, random_pool, report, timed

from nadpipe.circuit.accumulators import Extremes
from nadpipe.circuit.attention import AttentionPool
from nadpipe.circuit.directions import fit_pairs
from nadpipe.circuit.naming import normalise
from nadpipe.circuit.readout import pair_constants, write_vectors

BLOCK = 96  # views at a time, as in a shard of the store


def main() -> None:
    """Compare the time for all pairs (scaled up from a sample for the published side) and the directions."""
    parser = make_parser(__doc__)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="RN50x16")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--top-images", type=int, default=50, help="images that a direction is fitted to")
    parser.add_argument("--sample", type=int, default=200, help="pairs that the published side fits")
    given = parse(parser, architecture=TINY, images=30, top_images=11, sample=5)
    pool = random_pool(given.architecture)
    heads, neurons, embed, _ = ARCHITECTURES[given.architecture]
    pairs = heads * neurons
    coefficient = torch.rand(given.images, heads, neurons, generator=torch.Generator().manual_seed(2)).square()
    sample = torch.randint(pairs, (given.sample,), generator=torch.Generator().manual_seed(3)).tolist()
    constant = pair_constants(pool.readout)
    published_fits: dict[int, torch.Tensor] = {}
    sample_seconds = 0.0
    for pair in sample:
        head, neuron = divmod(pair, neurons)
        write = write_vectors(pool.readout, head)[neuron]
        dense = coefficient[:, head, neuron, None] * write + constant[head]  # as read from the dense file
        seconds, published_fits[pair] = timed(published.pair_direction, dense, given.top_images)
        sample_seconds += seconds
    one_pass_seconds, directions = timed(fit, coefficient, pool, given.top_images)
    cosine = min(float(directions[pair // neurons][pair % neurons] @ fitted) for pair, fitted in published_fits.items())
    published_seconds = sample_seconds / given.sample * pairs
    sides = (
        (f"published, SVD per pair ({given.sample} pairs measured)", published_seconds, round(published_seconds)),
        ("nadpipe, one pass", one_pass_seconds, round(one_pass_seconds, 1)),
    )
    rows = [
        {
            "side": side,
            f"s, all {pairs:,} pairs": rounded,
            "speed-up": round(published_seconds / seconds),
            "smallest cosine between both": f"{cosine:.6f}",
        }
        for side, seconds, rounded in sides
    ]
    title = (
        f"Directions of all pairs of {given.architecture} from {given.images} images; the published side without reading its "
        f"{pairs * embed * 4 / 1e6:.0f} MB per image"
    )
    report(given, "directions", title, rows)


def fit(coefficient: torch.Tensor, pool: AttentionPool, top_images: int) -> list[torch.Tensor]:
    """Return the directions of each head's pairs, fitted by nadpipe."""
    extremes = Extremes(top_images)
    for block in coefficient.split(BLOCK):
        extremes.add(block)
    farthest = extremes.result().farthest
    directions = []
    for head in range(pool.heads):
        write = write_vectors(pool.readout, head)
        directions.append(normalise(write) * fit_pairs(farthest[:, head], write).sign[:, None])
    return directions


if __name__ == "__main__":
    main()
