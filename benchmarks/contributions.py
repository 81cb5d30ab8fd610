"""Contributions of all pairs: the dense tensor as published against coefficients.

python benchmarks/contributions.py
"""

import published
import torch
from common import PUBLISHED, random_activations, random_pool, report, timed

from nadpipe.circuit import attention

VIEWS = 2  # what the dense side survives
MANY = 64


def factors(x: torch.Tensor, pool: attention.AttentionPool) -> torch.Tensor:
    """nadpipe's side, with the attention that the dense side is given."""
    return attention.coefficients(attention.attention(x, pool), x)


def main() -> None:
    """Compare time and size an image, and the numbers."""
    rows = []
    for architecture in ("RN50", "RN50x16"):
        pool = random_pool(architecture)
        heads, neurons, embed, _ = PUBLISHED[architecture]
        x, many = (attention.tokens(random_activations(pool, views), pool) for views in (VIEWS, MANY))
        attention = attention.attention(x, pool)
        slow = [timed(published.dense_contributions, x, attention, pool) for _ in range(3)]
        dense = slow[0][1]
        coefficient, constant = attention.coefficients(attention, x), attention.pair_constants(pool)
        error = 0.0
        for head in range(heads):
            own = coefficient[:, head, :, None] * attention.write_vectors(pool, head) + constant[head]
            error = max(error, float((own - dense[:, head]).abs().max()))
        few, several = (min(timed(factors, tokens, pool)[0] for _ in range(10)) / len(tokens) for tokens in (x, many))
        whole = min(took for took, _ in slow) / VIEWS
        for side, took, size in (
            (f"dense, {VIEWS} views at a time", whole, heads * neurons * embed),
            (f"factors, {VIEWS} views at a time", few, heads * neurons),
            (f"factors, {MANY} views at a time", several, heads * neurons),
        ):
            rows.append(
                {
                    "architecture": architecture,
                    "side": side,
                    "s an image": round(took, 5),
                    "MB an image": round(size * 4 / 1e6, 2),
                    "times faster": round(whole / took),
                    "largest difference": f"{error:.1e}",
                    "largest value": f"{float(dense.abs().max()):.1e}",
                }
            )
        del dense, slow
    about = "Contributions of all pairs from tokens: the dense tensor (one einsum a head) against factors, attention included"
    report("contributions", about, rows)


if __name__ == "__main__":
    main()
