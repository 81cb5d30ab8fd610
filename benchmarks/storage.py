"""Measure storage: bytes per image of the dense tensor and of nadpipe's stores, the error of float16, and times of reads.

python benchmarks/storage.py
"""

import tempfile
from pathlib import Path

from common import (
    ARCHITECTURES,
    PUBLISHED,
    TINY,
    make_parser,
    parse,
    random_pool,
    report,
    save_pool,
    timed,
    write_random_features,
)

from nadpipe.stages.compute_contributions import compute_contributions
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS, FEATURES


def main() -> None:
    """Write stores of random activations and measure them."""
    parser = make_parser(__doc__)
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(PUBLISHED))
    parser.add_argument("--views", type=int, default=128)
    given = parse(parser, architectures=[TINY], views=8)
    rows = []
    for architecture in given.architectures:
        for dtype in ("float32", "float16"):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(architecture, dtype, given.views, Path(folder)))
    title = f"Bytes per image and reads, {given.views} images of random activations, half of them zero"
    report(given, "storage", title, rows)


def measure(architecture: str, dtype: str, views: int, folder: Path) -> dict:
    """Return the row of one architecture and precision."""
    heads, neurons, embed, _ = ARCHITECTURES[architecture]
    pool = random_pool(architecture)
    save_pool(pool, folder / "readout.zarr")
    write_random_features(pool, views, dtype, folder / "features.zarr")
    outputs = folder / "contributions.zarr", folder / "means.zarr"
    compute_contributions(folder / "features.zarr", folder / "readout.zarr", *outputs, dtype=dtype)
    features = open_zarr(folder / "features.zarr", FEATURES)
    contributions = open_zarr(folder / "contributions.zarr", CONTRIBUTIONS)
    coefficient_folder = folder / "contributions.zarr" / "coefficient"
    activation_bytes = size(folder / "features.zarr") / views
    coefficient_bytes = size(coefficient_folder) / views
    dense_bytes = heads * neurons * embed * 4
    files = sum(path.is_file() and path.parent.name != "coefficient" for path in coefficient_folder.rglob("*"))
    coefficient = contributions["coefficient"]
    return {
        "architecture": architecture,
        "dtype": dtype,
        "dense, MB": round(dense_bytes / 1e6, 1),
        "features, MB": round(activation_bytes / 1e6, 2),
        "coefficients, MB": round(coefficient_bytes / 1e6, 2),
        "bytes per image and pair": round(coefficient_bytes / heads / neurons, 2),
        "dense / coefficients": round(dense_bytes / coefficient_bytes),
        "embedding error from rounded activations": f"{float(features.tensor('rounding').max()):.1e}",
        "embedding error from rounded coefficients": f"{float(contributions.tensor('rounding').max()):.1e}",
        "coefficient files": files,
        "read one image, ms": round(min(timed(lambda: coefficient[views // 2])[0] for _ in range(3)) * 1e3, 1),
        "read one pair's column, ms": round(min(timed(lambda: coefficient[:, heads // 2, 7])[0] for _ in range(3)) * 1e3, 1),
    }


def size(path: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
