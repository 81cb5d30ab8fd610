"""The manifest of a data set: one row per image, with its size and checksum."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pandas as pd

from nadpipe.data.views import ImageInfo, examine_image, examine_mask, printable
from nadpipe.errors import NadpipeError
from nadpipe.progress import track


def examine(rows: pd.DataFrame, bad: Literal["fail", "skip"] = "fail", threads: int = 1) -> pd.DataFrame:
    """Decode every image in `rows` (path, mask_path, group, label, and columns of the source) and return the manifest.

    Columns: image_id, path, width, height, sha256, label, group, mask_path, mask_sha256, problem, then those of the source. An
    image is invalid if it is unreadable, if its mask is unreadable or of another size, or if an earlier row lists it. If bad is
    "skip", invalid images come last, with image_id -1 and the problem. Raises NadpipeError if bad is "fail" and images are
    invalid (one line per image), or if no valid image remains.
    """
    paths, masks = rows["path"].tolist(), rows["mask_path"].tolist()
    repeated = rows["path"].duplicated().tolist()
    with ThreadPoolExecutor(threads) as pool:
        results = list(track(pool.map(_examine, paths, masks, repeated), "reading images", "image", len(rows)))
    problems = [str(result) if isinstance(result, NadpipeError) else None for result in results]
    reported = [problem for problem in problems if problem is not None]
    if reported and (bad == "fail" or len(reported) == len(rows)):
        advice = "repair them, or set bad_images: skip" if bad == "fail" else "repair them, because none is left"
        summary = [f"{len(reported)} of {len(rows)} images cannot be used; {advice}"] if len(reported) > 1 else []
        raise NadpipeError("\n".join(summary + reported))
    unknown = ImageInfo(0, 0, "")
    infos = [(unknown, None) if isinstance(result, NadpipeError) else result for result in results]
    manifest_columns = pd.DataFrame(
        {
            "path": paths,
            "width": [info.width for info, _ in infos],
            "height": [info.height for info, _ in infos],
            "sha256": [info.sha256 or None for info, _ in infos],
            **{name: pd.Series(rows[name].to_list(), dtype=object) for name in ("label", "group", "mask_path")},
            "mask_sha256": pd.Series([mask and mask.sha256 for _, mask in infos], dtype=object),
            "problem": pd.Series(problems, dtype=object),
        }
    )
    source_columns = rows.drop(columns=["path", "mask_path", "group", "label"]).reset_index(drop=True)
    manifest = pd.concat([manifest_columns, source_columns], axis=1)
    valid_first = manifest["problem"].notna().sort_values(kind="stable").index
    manifest = manifest.loc[valid_first].reset_index(drop=True)
    manifest.insert(0, "image_id", manifest.index.where(manifest["problem"].isna(), -1))
    return manifest


def content_fingerprint(manifest: pd.DataFrame) -> str:
    """Return a hash of the images' paths and checksums in order, which identifies the data set."""
    return hashlib.sha256("\n".join(manifest["path"] + " " + manifest["sha256"]).encode()).hexdigest()[:16]


def shard_rows(images: int, shard: int, shards: int) -> range:
    """Return the rows of one of `shards` contiguous, nearly equal shards. Raises NadpipeError if a shard would be empty."""
    if shards > images:
        raise NadpipeError(f"datasets: shards is {shards} for {images} images; use at most one shard per image")
    return range(images * shard // shards, images * (shard + 1) // shards)


def _examine(path: str, mask: str | None, repeated: bool) -> tuple[ImageInfo, ImageInfo | None] | NadpipeError:
    """Return size and checksum of an image and of its mask, or the error that makes the image invalid.

    A mask may have the size of the stored photograph or of the upright one.
    """
    try:
        if repeated:
            raise NadpipeError(f"{printable(path)}: listed more than once; list each image once")
        image = examine_image(path)
        size = image.height, image.width
        if mask is None:
            return image, None
        drawn = examine_mask(mask)
        if (drawn.height, drawn.width) not in (size, size[::-1]):
            sizes = f"mask is {drawn.width} × {drawn.height}, its image {size[1]} × {size[0]} pixels"
            raise NadpipeError(f"{printable(mask)}: {sizes}; use a mask of the image's size")
    except NadpipeError as error:
        return error
    return image, drawn
