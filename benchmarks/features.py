"""Images a second: nadpipe's features and contributions stages against a plain open_clip encode_image loop.

    python benchmarks/features.py --images <folder of photographs>

Both sides read, decode, preprocess and encode the same files with the same batch size; nadpipe also writes everything to
disk. Loading the model is not counted on either side: a stage is timed with all images and with one batch, and the
difference of the best times counts. The sides take turns.
"""

import argparse
import contextlib
import io
import itertools
import tempfile
from pathlib import Path

import pandas as pd
import torch
from common import random_checkpoint, report, timed
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from nadpipe.data.layouts import IMAGE_SUFFIXES
from nadpipe.stages.compute_contributions import compute_contributions
from nadpipe.stages.export_readout import export_readout
from nadpipe.stages.extract_features import extract_features
from nadpipe.stages.index_images import index_images
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import FEATURES


def main() -> None:
    """Measure each architecture."""
    options = argparse.ArgumentParser()
    options.add_argument("--images", type=Path, required=True, help="folder of photographs, used again when there are too few")
    options.add_argument("--architectures", nargs="+", default=["RN50", "RN50x16"])
    options.add_argument("--count", type=int, nargs="+", default=[160, 48], help="images, for each architecture")
    options.add_argument("--batch-size", type=int, default=16)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--turns", type=int, default=3)
    options.add_argument("--device", default="cpu")
    given = options.parse_args()
    rows = []
    for architecture, count in zip(given.architectures, given.count, strict=True):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            rows += measure(architecture, count, given, Path(folder))
    about = f"Images a second on {given.device}, batch {given.batch_size}, {given.workers} decoding workers, random weights"
    report(f"features_{given.device}", about, rows)


def measure(architecture: str, count: int, given: argparse.Namespace, folder: Path) -> list[dict]:
    """Rows of one architecture."""
    clip = random_checkpoint(architecture, folder / "model.safetensors").to(given.device)
    found = [str(path.resolve()) for path in sorted(given.images.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    paths = list(itertools.islice(itertools.cycle(found), count))
    model = {"architecture": architecture, "pretrained": str(folder / "model.safetensors")}
    with contextlib.redirect_stdout(io.StringIO()):
        export_readout(output=folder / "pool.zarr", **model)
        for name, listed in (("all", paths), ("few", paths[: given.batch_size])):
            pd.DataFrame({"path": listed}).to_csv(folder / f"{name}.csv", index=False)
            index_images("table", folder / f"{name}.csv", folder / f"{name}.parquet")
    how = {"batch_size": given.batch_size, "workers": given.workers, "device": given.device, **model}

    def features(precision: str, name: str) -> None:
        extract_features(folder / f"{name}.parquet", output=folder / f"{precision}-{name}.zarr", precision=precision, **how)

    def contributions(precision: str, name: str) -> None:
        compute_contributions(folder / f"{precision}-{name}.zarr", folder / "pool.zarr", folder / f"{name}-c.zarr")

    took: dict[str, list[float]] = {}
    plain_loop(clip, paths[: given.batch_size], given)  # warm
    for _ in range(given.turns):
        took.setdefault("plain loop", []).append(timed(plain_loop, clip, paths, given)[0])
        for precision in ("float32", "bfloat16"):
            for stage in (features, contributions):
                for name in ("few", "all"):
                    took.setdefault(f"{stage.__name__} {precision} {name}", []).append(timed(stage, precision, name)[0])
    best = {name: min(turns) for name, turns in took.items()}
    plain = best["plain loop"] / count
    rows = [row(architecture, "open_clip, plain encode_image loop", plain, plain, 0, 0)]
    for precision in ("float32", "bfloat16"):
        sides = (f"features {precision}", f"contributions {precision}")
        encode, decompose = ((best[f"{side} all"] - best[f"{side} few"]) / (count - given.batch_size) for side in sides)
        error = open_zarr(folder / f"{precision}-all.zarr", FEATURES).attributes["encode_image_error"]
        rows.append(row(architecture, f"nadpipe, {precision}", encode, plain, decompose, error))
    return rows


def row(architecture: str, side: str, encode: float, plain: float, decompose: float, error: float) -> dict:
    """One line of the table."""
    return {
        "architecture": architecture,
        "side": side,
        "features, images/s": round(1 / encode, 2),
        "features + contributions, images/s": round(1 / (encode + decompose), 2),
        "features, times the plain loop": round(plain / encode, 2),
        "both, times the plain loop": round(plain / (encode + decompose), 2),
        "contributions, of the plain loop's time": f"{decompose / plain:.1%}",
        "contributions, ms an image": round(decompose * 1e3, 2),
        "differs from encode_image by": f"{error:.1e}",
    }


def plain_loop(clip: torch.nn.Module, paths: list[str], given: argparse.Namespace) -> None:
    """What one writes with open_clip alone."""
    preprocess = image_transform_v2(PreprocessCfg(size=clip.visual.image_size), is_train=False)
    for start in range(0, len(paths), given.batch_size):
        batch = torch.stack([preprocess(Image.open(path)) for path in paths[start : start + given.batch_size]])
        with torch.inference_mode():
            clip.encode_image(batch.to(given.device)).cpu()


if __name__ == "__main__":
    main()
