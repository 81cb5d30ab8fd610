"""Measure images per second of the features and contributions stages against a plain loop over open_clip's encode_image.

    python benchmarks/features.py --images <folder of photographs>

Both sides read, decode, preprocess and encode the same files with the same batch size; nadpipe also writes everything to
disk. The time to load the model is left out on both sides: each stage runs on all images and on one batch, and the difference
of the best times counts. The sides take turns.
"""

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

import pandas as pd
import torch
from common import ARCHITECTURES, TINY, make_parser, parse, random_checkpoint, report, timed, write_photos
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from nadpipe.stages.compute_contributions import compute_contributions
from nadpipe.stages.export_readout import export_readout
from nadpipe.stages.extract_features import extract_features
from nadpipe.stages.index_images import index_images
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import FEATURES

TRANSFORMERS = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-B-16-SigLIP")


def main() -> None:
    """Measure each architecture."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--images", type=Path, help="folder of photographs, repeated if there are too few; by default scenes are drawn"
    )
    architectures = [*ARCHITECTURES, *TRANSFORMERS]
    parser.add_argument("--architectures", nargs="+", choices=architectures, default=["RN50", "RN50x16"])
    parser.add_argument("--count", type=int, nargs="+", default=[160, 48], help="number of images for each architecture")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2, help="processes that decode images")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    given = parse(parser, architectures=[TINY], count=[6], batch_size=2, workers=1, turns=1)
    rows = []
    for architecture, count in zip(given.architectures, given.count, strict=True):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            rows += measure(architecture, count, given, Path(folder))
    title = f"Images per second on {given.device}, batch {given.batch_size}, {given.workers} decoding workers, random weights"
    report(given, f"features_{given.device}", title, rows)


def measure(architecture: str, count: int, given: argparse.Namespace, folder: Path) -> list[dict]:
    """Return the rows of one architecture."""
    clip, model = random_checkpoint(architecture, folder)
    clip.to(given.device)
    paths = [str(path) for path in write_photos(given.images, count, folder / "photos")]
    with contextlib.redirect_stdout(io.StringIO()):
        export_readout(output=folder / "readout.zarr", **model)
        for name, listed in (("all", paths), ("few", paths[: given.batch_size])):
            pd.DataFrame({"path": listed}).to_csv(folder / f"{name}.csv", index=False)
            index_images("table", folder / f"{name}.csv", folder / f"{name}.parquet")
    options = {"batch_size": given.batch_size, "workers": given.workers, "device": given.device, **model}

    def features(precision: str, name: str) -> None:
        extract_features(folder / f"{name}.parquet", output=folder / f"{precision}-{name}.zarr", precision=precision, **options)

    def contributions(precision: str, name: str) -> None:
        outputs = folder / f"{name}-contributions.zarr", folder / f"{name}-means.zarr"
        compute_contributions(folder / f"{precision}-{name}.zarr", folder / "readout.zarr", *outputs)

    times: dict[str, list[float]] = {}
    plain_loop(clip, paths[: given.batch_size], given)  # warm up
    for _ in range(given.turns):
        times.setdefault("plain loop", []).append(timed(plain_loop, clip, paths, given)[0])
        for precision in ("float32", "bfloat16"):
            for stage in (features, contributions):
                for name in ("few", "all"):
                    times.setdefault(f"{stage.__name__} {precision} {name}", []).append(timed(stage, precision, name)[0])
    best = {name: min(turns) for name, turns in times.items()}
    plain = best["plain loop"] / count
    rows = [tabulate(architecture, "open_clip, plain encode_image loop", plain, plain, 0, 0)]
    for precision in ("float32", "bfloat16"):
        sides = (f"features {precision}", f"contributions {precision}")
        encode, decompose = ((best[f"{side} all"] - best[f"{side} few"]) / (count - given.batch_size) for side in sides)
        error = open_zarr(folder / f"{precision}-all.zarr", FEATURES).attributes["encode_image_error"]
        rows.append(tabulate(architecture, f"nadpipe, {precision}", encode, plain, decompose, error))
    return rows


def tabulate(architecture: str, side: str, encode: float, plain: float, decompose: float, error: float) -> dict:
    """Return one row from seconds per image."""
    return {
        "architecture": architecture,
        "side": side,
        "features, images/s": round(1 / encode, 2),
        "features + contributions, images/s": round(1 / (encode + decompose), 2),
        "features, speed-up": round(plain / encode, 2),
        "features + contributions, speed-up": round(plain / (encode + decompose), 2),
        "contributions, share of the plain loop's time": f"{decompose / plain:.1%}",
        "contributions, ms per image": round(decompose * 1e3, 2),
        "difference from encode_image": f"{error:.1e}",
    }


def plain_loop(clip: torch.nn.Module, paths: list[str], given: argparse.Namespace) -> None:
    """Encode images in a plain loop over open_clip's encode_image."""
    preprocess = image_transform_v2(PreprocessCfg(size=clip.visual.image_size), is_train=False)
    for start in range(0, len(paths), given.batch_size):
        batch = torch.stack([preprocess(Image.open(path)) for path in paths[start : start + given.batch_size]])
        with torch.inference_mode():
            clip.encode_image(batch.to(given.device)).cpu()


if __name__ == "__main__":
    main()
