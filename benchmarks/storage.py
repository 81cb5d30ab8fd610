"""Bytes an image: the dense tensor, and what nadpipe keeps; the error of float16; how long reads take.

python benchmarks/storage.py
"""

import argparse
import tempfile
from pathlib import Path

from common import PUBLISHED, random_pool, report, save_pool, timed, write_random_features

from nadpipe.stages.compute_contributions import compute_contributions
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS, FEATURES


def main() -> None:
    """Write real stores of random activations and look at them."""
    options = argparse.ArgumentParser()
    options.add_argument("--views", type=int, default=128)
    given = options.parse_args()
    rows = []
    for architecture in PUBLISHED:
        for dtype in ("float32", "float16"):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(architecture, dtype, given.views, Path(folder)))
    about = f"Bytes an image and reads, {given.views} images of random activations, half of them zero"
    report("storage", about, rows)


def measure(architecture: str, dtype: str, views: int, folder: Path) -> dict:
    """One line of the table."""
    heads, neurons, embed, _ = PUBLISHED[architecture]
    pool = random_pool(architecture)
    save_pool(pool, folder / "pool.zarr")
    write_random_features(pool, views, dtype, folder / "f.zarr")
    compute_contributions(folder / "f.zarr", folder / "pool.zarr", folder / "c.zarr", dtype=dtype)
    features, store = open_zarr(folder / "f.zarr", FEATURES), open_zarr(folder / "c.zarr", CONTRIBUTIONS)
    sizes = {
        name: size(folder / path) / views for name, path in (("activation", "f.zarr"), ("coefficient", "c.zarr/coefficient"))
    }
    dense = heads * neurons * embed * 4
    files = sum(path.is_file() and path.parent.name != "coefficient" for path in (folder / "c.zarr/coefficient").rglob("*"))
    coefficient = store["coefficient"]
    return {
        "architecture": architecture,
        "dtype": dtype,
        "dense, MB": round(dense / 1e6, 1),
        "features, MB": round(sizes["activation"] / 1e6, 2),
        "coefficients, MB": round(sizes["coefficient"] / 1e6, 2),
        "bytes an image and pair": round(sizes["coefficient"] / heads / neurons, 2),
        "dense / coefficients": round(dense / sizes["coefficient"]),
        "embedding moves by, activations": f"{float(features['rounding'][:].max()):.1e}",
        "embedding moves by, coefficients": f"{float(store['rounding'][:].max()):.1e}",
        "files for coefficients": files,
        "one image, ms": round(min(timed(lambda: coefficient[views // 2])[0] for _ in range(3)) * 1e3, 1),
        "one pair's column, ms": round(min(timed(lambda: coefficient[:, heads // 2, 7])[0] for _ in range(3)) * 1e3, 1),
    }


def size(path: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
