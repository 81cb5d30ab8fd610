"""Contributions of all pairs: the dense tensor as published against coefficients.

python benchmarks/contributions.py
"""

import published
import torch
from common import PUBLISHED, random_activations, random_pool, report, timed

from nadpipe import attnpool

VIEWS = 2  # what the dense side survives
MANY = 64


def factors(x: torch.Tensor, pool: attnpool.AttentionPool) -> torch.Tensor:
    """nadpipe's side, with the attention that the dense side is given."""
    return attnpool.coefficients(attnpool.attention(x, pool), x)


def main() -> None:
    """Compare time and size an image, and the numbers."""
    rows = []
    for architecture in ("RN50", "RN50x16"):
        pool = random_pool(architecture)
        heads, neurons, embed, _ = PUBLISHED[architecture]
        x = attnpool.tokens(random_activations(pool, VIEWS), pool)
        many = attnpool.tokens(random_activations(pool, MANY), pool)
        attention = attnpool.attention(x, pool)
        slow, dense = timed(published.dense_contributions, x, attention, pool)
        fast = min(timed(factors, many, pool)[0] for _ in range(5))
        coefficient, constant = attnpool.coefficients(attention, x), attnpool.pair_constants(pool)
        error = 0.0
        for head in range(heads):
            own = coefficient[:, head, :, None] * attnpool.write_vectors(pool, head) + constant[head]
            error = max(error, float((own - dense[:, head]).abs().max()))
        for side, took, size in (
            ("published, dense", slow, heads * neurons * embed),
            ("nadpipe, factors", fast, heads * neurons),
        ):
            rows.append(
                {
                    "architecture": architecture,
                    "side": side,
                    "s an image": round(took, 5),
                    "MB an image": round(size * 4 / 1e6, 2),
                    "times faster": round(slow / VIEWS / took),
                    "largest difference": f"{error:.1e}",
                    "largest value": f"{float(dense.abs().max()):.1e}",
                }
            )
        del dense
    report(
        "contributions",
        "Contributions of all pairs, random weights at the published sizes, attention included on nadpipe's side",
        rows,
    )


if __name__ == "__main__":
    main()
