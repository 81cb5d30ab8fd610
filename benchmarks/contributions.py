"""Compare two ways to compute the contributions of all pairs: the dense tensor as published, and factors.

python benchmarks/contributions.py
"""

import published
import torch
from common import ARCHITECTURES, TINY, make_parser, parse, random_activations, random_pool, report, timed

from nadpipe.circuit import attention as pooling
from nadpipe.circuit import readout as circuit
from nadpipe.circuit.attention import AttentionPool


def main() -> None:
    """Measure each architecture."""
    parser = make_parser(__doc__)
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=["RN50", "RN50x16"])
    parser.add_argument("--views", type=int, default=2, help="views at a time on both sides; the dense side needs 453 MB each")
    parser.add_argument("--many", type=int, default=64, help="views at a time with factors alone")
    given = parse(parser, architectures=[TINY], many=8)
    rows = [row for architecture in given.architectures for row in measure(architecture, given.views, given.many)]
    title = "Contributions of all pairs from tokens: the dense tensor (one einsum per head) against factors, attention included"
    report(given, "contributions", title, rows)


def measure(architecture: str, views: int, many: int) -> list[dict]:
    """Compare time and size per image, and the numbers."""
    pool = random_pool(architecture)
    heads, neurons, embed, _ = ARCHITECTURES[architecture]
    few_tokens, many_tokens = (pooling.tokens(random_activations(pool, count), pool) for count in (views, many))
    attention = pooling.attention(few_tokens, pool)
    dense_runs = [timed(published.dense_contributions, few_tokens, attention, pool) for _ in range(3)]
    dense = dense_runs[0][1]
    error = largest_difference(factors(few_tokens, pool), dense, pool)
    few_seconds, many_seconds = (
        min(timed(factors, tokens, pool)[0] for _ in range(10)) / len(tokens) for tokens in (few_tokens, many_tokens)
    )
    dense_seconds = min(seconds for seconds, _ in dense_runs) / views
    sides = (
        (f"dense, {views} views at a time", dense_seconds, heads * neurons * embed),
        (f"factors, {views} views at a time", few_seconds, heads * neurons),
        (f"factors, {many} views at a time", many_seconds, heads * neurons),
    )
    return [
        {
            "architecture": architecture,
            "side": side,
            "s per image": round(seconds, 5),
            "MB per image": round(size * 4 / 1e6, 2),
            "speed-up": round(dense_seconds / seconds),
            "largest difference": f"{error:.1e}",
            "largest value": f"{float(dense.abs().max()):.1e}",
        }
        for side, seconds, size in sides
    ]


def factors(x: torch.Tensor, pool: AttentionPool) -> torch.Tensor:
    """Compute the coefficients of all pairs from tokens."""
    return circuit.coefficients(circuit.Trace(x, pooling.attention(x, pool)), pool.readout)


def largest_difference(coefficient: torch.Tensor, dense: torch.Tensor, pool: AttentionPool) -> float:
    """Return the largest difference between coefficients times write vectors and the dense tensor, head by head."""
    constant = circuit.pair_constants(pool.readout)
    return max(
        float(
            (coefficient[:, head, :, None] * circuit.write_vectors(pool.readout, head) + constant[head] - dense[:, head])
            .abs()
            .max()
        )
        for head in range(pool.heads)
    )


if __name__ == "__main__":
    main()
