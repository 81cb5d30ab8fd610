"""Compare implementations of orthogonal matching pursuit: nadpipe, scikit-learn and orthogonal-matching-pursuit-gpu.

    pip install -c constraints.txt -e ".[benchmarks]" && python benchmarks/sparse_text.py

Signals are write vectors of unit length. Atoms are random unit vectors, the hardest case for screening. With --device cuda,
nadpipe and orthogonal-matching-pursuit-gpu run on the GPU.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch
from common import ARCHITECTURES, TINY, make_parser, parse, random_pool, report, timed

from nadpipe.circuit.naming import normalise
from nadpipe.circuit.pursuit import Strongest, matching_pursuit
from nadpipe.circuit.readout import write_vectors

Measurement = tuple[float, torch.Tensor]  # seconds per signal, and the atoms of each signal


def main() -> None:
    """Compare time per signal and supports for two sizes of the dictionary."""
    sides: dict[str, Callable[..., dict[str, Measurement]]] = {
        "nadpipe": run_nadpipe,
        "omp-gpu": run_omp_gpu,
        "scikit-learn": run_scikit_learn,
    }
    parser = make_parser(__doc__)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="RN50x16")
    parser.add_argument("--atoms", type=int, nargs="+", default=[20_000, 30_000], help="sizes of the dictionary")
    parser.add_argument("--rank", type=int, default=64, help="atoms per signal")
    parser.add_argument("--signals", type=int, default=512)
    parser.add_argument("--few", type=int, default=16, help="signals for scikit-learn, which takes seconds for each")
    parser.add_argument("--sides", nargs="+", choices=sides, default=list(sides))
    parser.add_argument("--device", default="cpu")
    given = parse(parser, architecture=TINY, atoms=[300], rank=4, signals=20, few=5)
    pool = random_pool(given.architecture)
    signal = normalise(write_vectors(pool.readout, 0))[: given.signals].to(given.device)
    rows = []
    for count in given.atoms:
        generator = torch.Generator().manual_seed(5)
        dictionary = normalise(torch.randn(count, signal.shape[1], generator=generator)).to(given.device)
        measured: dict[str, Measurement] = {}
        for side in ["nadpipe", *(side for side in given.sides if side != "nadpipe")]:
            measured |= sides[side](signal, dictionary, given)
        rows += tabulate(measured, count, pool.readout.pairs)
    title = (
        f"Sparse codes of {given.rank} atoms of {given.architecture}'s pair directions (width {pool.embed}), on {given.device}"
    )
    report(given, "sparse_text", title, rows)


def run_nadpipe(signal: torch.Tensor, dictionary: torch.Tensor, given: argparse.Namespace) -> dict[str, Measurement]:
    """Measure nadpipe with and without screening in bfloat16."""
    measured = {}
    for name, screen in (("nadpipe", None), ("nadpipe, no screening", False)):
        pursue = functools.partial(matching_pursuit, signal, dictionary, given.rank, Strongest(dictionary, screen))
        seconds, code = best(pursue)
        measured[name] = seconds / len(signal), code.atom
    return measured


def run_omp_gpu(signal: torch.Tensor, dictionary: torch.Tensor, given: argparse.Namespace) -> dict[str, Measurement]:
    """Measure both algorithms of orthogonal-matching-pursuit-gpu: its public function, and the inner one alone."""
    from orthogonal_matching_pursuit_gpu import omp  # an optional dependency

    package, columns, measured = "orthogonal-matching-pursuit-gpu", dictionary.T.contiguous(), {}
    for algorithm in ("v0", "naive"):  # v0 is the default
        options = {"n_nonzero_coefs": given.rank, "normalize": False, "fit_intercept": False, "alg": algorithm}
        seconds, codes = best(functools.partial(omp.run_omp, columns, signal, **options))  # includes its Gram matrix
        atoms = torch.stack([row.nonzero()[:, 0] for row in codes])
        measured[f"{package}, run_omp, {algorithm}"] = seconds / len(signal), atoms
        gram = dictionary @ columns if algorithm == "v0" else None
        inner = getattr(omp, f"omp_{algorithm}")
        seconds, result = best(functools.partial(inner, columns, signal, n_nonzero_coefs=given.rank, XTX=gram))
        measured[f"{package}, inner function, {algorithm}"] = seconds / len(signal), result[0]
    return measured


def run_scikit_learn(signal: torch.Tensor, dictionary: torch.Tensor, given: argparse.Namespace) -> dict[str, Measurement]:
    """Measure scikit-learn as its SparseCoder calls it, without the Gram matrix, which it computes at every call."""
    from sklearn.linear_model import orthogonal_mp_gram

    few = signal[: given.few].cpu()
    gram, product = ((dictionary @ other.T).cpu().numpy() for other in (dictionary, few.to(dictionary.device)))
    options = {"n_nonzero_coefs": given.rank, "norms_squared": few.square().sum(1).numpy(), "copy_Xy": False}
    seconds, codes = timed(functools.partial(orthogonal_mp_gram, gram, product, **options))
    atoms = torch.stack([torch.from_numpy(row).nonzero()[:, 0] for row in codes.T])
    return {"scikit-learn, as SparseCoder calls it": (seconds / len(few), atoms)}


def best(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the shorter time of two calls, and the result."""
    runs = [timed(function) for _ in range(2)]
    return min(seconds for seconds, _ in runs), runs[0][1]


def tabulate(measured: dict[str, Measurement], atoms: int, pairs: int) -> list[dict]:
    """Return the rows of one dictionary."""
    supports = {name: chosen.sort(dim=1).values.cpu() for name, (_, chosen) in measured.items()}
    rows = []
    for name, (seconds, _) in measured.items():
        same = (supports[name] == supports["nadpipe"][: len(supports[name])]).all(1).float().mean()
        rows.append(
            {
                "atoms": atoms,
                "side": name,
                "ms per signal": round(seconds * 1e3, 2),
                "speed-up of nadpipe": f"{seconds / measured['nadpipe'][0]:.1f} ×",
                "same supports": f"{same:.1%} of {len(supports[name])}",
                f"time, all {pairs:,} pairs": f"{seconds * pairs / 60:,.0f} min",
            }
        )
    return rows


if __name__ == "__main__":
    main()
