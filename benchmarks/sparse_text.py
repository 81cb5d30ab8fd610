"""Sparse codes by orthogonal matching pursuit: scikit-learn and orthogonal-matching-pursuit-gpu against nadpipe.

    pip install -c constraints.txt -e ".[benchmarks]" && python benchmarks/sparse_text.py

Signals are write vectors of RN50x16's size, unit length; atoms are random unit vectors, which are as hard to tell apart by
screening as any. On a GPU (--device cuda) nadpipe and the package run there.
"""

import argparse
import functools

import torch
from common import random_pool, report, timed
from orthogonal_matching_pursuit_gpu import omp
from sklearn.linear_model import orthogonal_mp_gram

from nadpipe.circuit import attention, naming

SIGNALS = 512
OF_SCIKIT_LEARN = 16  # of them, since it takes seconds for each


def main() -> None:
    """Compare time a signal and supports at two sizes of the dictionary."""
    options = argparse.ArgumentParser()
    options.add_argument("--atoms", type=int, nargs="+", default=[20_000, 30_000])
    options.add_argument("--rank", type=int, default=64)
    options.add_argument("--device", default="cpu")
    given = options.parse_args()
    pool = random_pool("RN50x16")
    signal = naming.unit(attention.write_vectors(pool, 0))[:SIGNALS].to(given.device)
    rows = []
    for count in given.atoms:
        generator = torch.Generator().manual_seed(5)
        dictionary = naming.unit(torch.randn(count, signal.shape[1], generator=generator)).to(given.device)
        rows += compare(signal, dictionary, given.rank)
    report(
        "sparse_text", f"Sparse codes of {given.rank} atoms of RN50x16's pair directions (width 768), on {given.device}", rows
    )


def compare(signal: torch.Tensor, dictionary: torch.Tensor, rank: int) -> list[dict]:
    """Rows of one dictionary."""
    found: dict[str, torch.Tensor] = {}
    took: dict[str, float] = {}
    for name, screen in (("nadpipe", None), ("nadpipe, no screening", False)):
        strongest = naming.Strongest(dictionary, screen)
        pursue = functools.partial(naming.matching_pursuit, signal, dictionary, rank, strongest)
        timings = [timed(pursue) for _ in range(2)]
        took[name], found[name] = min(time for time, _ in timings) / len(signal), timings[0][1].atom
    columns = dictionary.T.contiguous()
    for algorithm in ("v0", "naive"):  # v0 is the default
        name = f"orthogonal-matching-pursuit-gpu, run_omp, {algorithm}"  # its Gram matrix at every call is part of the call
        options = {"n_nonzero_coefs": rank, "normalize": False, "fit_intercept": False, "alg": algorithm}
        pursue = functools.partial(omp.run_omp, columns, signal, **options)
        timings = [timed(pursue) for _ in range(2)]
        took[name] = min(time for time, _ in timings) / len(signal)
        found[name] = torch.stack([row.nonzero()[:, 0] for row in timings[0][1]])
        name = f"the same, its inner function alone, {algorithm}"
        gram = dictionary @ columns if algorithm == "v0" else None
        pursue = functools.partial(getattr(omp, f"omp_{algorithm}"), columns, signal, n_nonzero_coefs=rank, XTX=gram)
        timings = [timed(pursue) for _ in range(2)]
        took[name], found[name] = min(time for time, _ in timings) / len(signal), timings[0][1][0]
        del gram, pursue
    few = signal[:OF_SCIKIT_LEARN].cpu()
    name = "scikit-learn, as SparseCoder calls it"  # which computes the Gram matrix at every call; not counted either
    gram, product = ((dictionary @ side.T).cpu().numpy() for side in (dictionary, few.to(dictionary.device)))
    options = {"n_nonzero_coefs": rank, "norms_squared": few.square().sum(1).numpy(), "copy_Xy": False}
    whole, codes = timed(functools.partial(orthogonal_mp_gram, gram, product, **options))
    took[name] = whole / len(few)
    found[name] = torch.stack([torch.from_numpy(row).nonzero()[:, 0] for row in codes.T])
    del gram
    supports = {name: atoms.sort(dim=1).values.cpu() for name, atoms in found.items()}
    rows = []
    for name, time in took.items():
        same = (supports[name] == supports["nadpipe"][: len(supports[name])]).all(1).float().mean()
        rows.append(
            {
                "atoms": len(dictionary),
                "side": name,
                "ms a signal": round(time * 1e3, 2),
                "nadpipe is faster": f"{time / took['nadpipe']:.1f} ×",
                "same supports": f"{same:.1%} of {len(supports[name])}",
                "all 147,456 pairs": f"{time * 147456 / 60:,.0f} min",
            }
        )
    return rows


if __name__ == "__main__":
    main()
