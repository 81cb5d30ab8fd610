"""The manifest of a data set: one row per image, with its size and checksum."""

import hashlib
import itertools
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pandas as pd

from nadpipe.data.views import ImageInfo, examine_image, examine_mask
from nadpipe.errors import NadpipeError, printable
from nadpipe.progress import track

Examined = tuple[ImageInfo, ImageInfo | None]  # of an image and of its mask, if it has one

_BLOCK = 4096  # rows of the manifest that are made at a time
_TASK = 16  # images that a thread or process reads at a time: handing over one takes as long as reading a small one
_MANY = 5000  # images that are worth starting processes for
_EMPTY = {"i": 0, "u": 0, "b": False}  # by kind of type
_REPORTED = 1000  # images in a message


def examine(
    rows: pd.DataFrame, bad: Literal["fail", "skip"] = "fail", threads: int = 1, ignored: Sequence[Path] = ()
) -> pd.DataFrame:
    """Return the whole manifest of `rows`, as `examine_in_blocks` does."""
    return pd.concat(examine_in_blocks(rows, bad, threads, ignored), ignore_index=True)


def examine_in_blocks(
    rows: pd.DataFrame, bad: Literal["fail", "skip"] = "fail", threads: int = 1, ignored: Sequence[Path] = ()
) -> Iterator[pd.DataFrame]:
    """Decode every image in `rows` (path, mask_path, group, label, and columns of the source). Yield the manifest in blocks.

    Columns: image_id, path, width, height, sha256, label, group, mask_path, mask_sha256, problem, then those of the source. An
    image is invalid if it is unreadable, if its mask is unreadable or of another size, or if an earlier row lists it. If bad is
    "skip", invalid images come last, with image_id -1 and the problem. The images in `ignored`, whose format is not read,
    always do. Raises NadpipeError if bad is "fail" and images are invalid (one line per image, at most 1,000), or if no valid
    image remains. Besides `rows`, only the problems are kept in memory.
    """
    problems: dict[int, str] = {}  # by row
    valid = 0
    results = track(_results(rows, threads), "reading images", "image", len(rows))
    for start in range(0, len(rows), _BLOCK):
        block = dict(enumerate(itertools.islice(results, _BLOCK), start))
        problems |= {row: str(result) for row, result in block.items() if isinstance(result, NadpipeError)}
        infos = {row: result for row, result in block.items() if not isinstance(result, NadpipeError)}
        if infos and (bad == "skip" or not problems):
            yield _manifest(rows, infos, range(valid, valid + len(infos)))
        valid += len(infos)
    if problems and (bad == "fail" or not valid):
        raise NadpipeError(_describe(list(problems.values()), len(rows), bad))
    for start in range(0, len(problems), _BLOCK):
        listed = dict(itertools.islice(problems.items(), start, start + _BLOCK))
        manifest = _manifest(rows, dict.fromkeys(listed, (ImageInfo(0, 0, ""), None)), [-1] * len(listed))
        yield manifest.assign(problem=list(listed.values()))
    for start in range(0, len(ignored), _BLOCK):
        yield _not_read(rows, ignored[start : start + _BLOCK])


def _results(rows: pd.DataFrame, threads: int) -> Iterator[Examined | NadpipeError]:
    """Yield the result of each row.

    Rows are handed over block by block, because an executor's queue of all rows would take gigabytes.
    """
    repeated = rows["path"].duplicated().to_numpy()
    with _executor(len(rows), threads) as pool:
        for start in range(0, len(rows), _BLOCK):
            block = rows.iloc[start : start + _BLOCK]
            columns = (_with_none(block[name]) for name in ("path", "mask_path"))
            jobs = list(zip(*columns, repeated[start : start + _BLOCK].tolist(), strict=True))
            tasks = [jobs[first : first + _TASK] for first in range(0, len(jobs), _TASK)]
            for results in pool.map(_examine_all, tasks):
                yield from results


def _executor(images: int, threads: int) -> Executor:
    """Return threads for few images, and processes, which take longer to start, for many.

    Small images take Pillow longer to open than to decode, and only decoding runs in several threads at the same time.
    """
    if threads == 1 or images < _MANY:
        return ThreadPoolExecutor(threads)
    return ProcessPoolExecutor(threads, multiprocessing.get_context("spawn"))  # a fork would copy locks that threads hold


def _examine_all(images: list[tuple[str, str | None, bool]]) -> list[Examined | NadpipeError]:
    return [_examine(*image) for image in images]


def _manifest(rows: pd.DataFrame, infos: Mapping[int, Examined], image_ids: Sequence[int]) -> pd.DataFrame:
    """Return the manifest of some rows, with no problems. infos: by row."""
    selected = rows.iloc[list(infos)].reset_index(drop=True)
    columns = {
        "image_id": image_ids,
        "path": selected["path"],
        "width": [image.width for image, _ in infos.values()],
        "height": [image.height for image, _ in infos.values()],
        "sha256": [image.sha256 or None for image, _ in infos.values()],
        **{name: pd.Series(_with_none(selected[name]), dtype=object) for name in ("label", "group", "mask_path")},
        "mask_sha256": pd.Series([mask and mask.sha256 for _, mask in infos.values()], dtype=object),
        "problem": pd.Series([None] * len(infos), dtype=object),
    }
    source_columns = selected.drop(columns=["path", "mask_path", "group", "label"])
    return pd.concat([pd.DataFrame(columns), source_columns], axis=1)


def _with_none(texts: pd.Series) -> list[str | None]:
    return texts.astype(object).where(texts.notna(), None).tolist()


def _describe(problems: list[str], images: int, bad: Literal["fail", "skip"]) -> str:
    """Return the message about invalid images: a summary if there are several, and one line each."""
    if len(problems) == 1:
        return problems[0]
    advice = "repair them, or set bad_images: skip" if bad == "fail" else "repair them, because none is left"
    more = [f"… and {len(problems) - _REPORTED:,} more"] if len(problems) > _REPORTED else []
    return "\n".join([f"{len(problems)} of {images} images cannot be used; {advice}", *problems[:_REPORTED], *more])


def _not_read(rows: pd.DataFrame, ignored: Sequence[Path]) -> pd.DataFrame:
    """Return the manifest of images whose format is not read. Columns of the source are empty; whole numbers are 0."""
    empty = {name: [_EMPTY.get(column.dtype.kind)] * len(ignored) for name, column in rows.items()}
    unlisted = pd.DataFrame(empty).astype({name: column.dtype for name, column in rows.items()})
    unlisted["path"] = list(map(str, ignored))
    manifest = _manifest(unlisted, dict.fromkeys(range(len(ignored)), (ImageInfo(0, 0, ""), None)), [-1] * len(ignored))
    problems = [f"{printable(str(path))}: images {path.suffix.lower()} are not read; convert it" for path in ignored]
    return manifest.assign(problem=problems)


def content_fingerprint(manifest: pd.DataFrame) -> str:
    """Return a hash of the images' paths and checksums in order, which identifies the data set."""
    return hashlib.sha256("\n".join(manifest["path"] + " " + manifest["sha256"]).encode()).hexdigest()[:16]


def shard_rows(images: int, shard: int, shards: int) -> range:
    """Return the rows of one of `shards` contiguous, nearly equal shards. Raises NadpipeError if a shard would be empty."""
    if shards > images:
        raise NadpipeError(f"datasets: shards is {shards} for {images} images; use at most one shard per image")
    return range(images * shard // shards, images * (shard + 1) // shards)


def _examine(path: str, mask: str | None, repeated: bool) -> Examined | NadpipeError:
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
