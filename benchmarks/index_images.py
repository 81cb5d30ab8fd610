"""Measure time and memory of listing a table of many small images, beside a plain loop and one task per image.

    python benchmarks/index_images.py

Threads of one process share one core for all but decoding. Every image is read, hashed and decoded. The plain loop does this
in one process and keeps nothing. "one task per image" hands all rows to two threads at once and keeps all results, as nadpipe
once did. The images are hard links of a few files, so that many fit on a disk. Memory is that of the largest process.
"""

import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import make_parser, nadpipe, parse, report, run_command
from PIL import Image

SIDE = 32  # pixels
FILES = 16
LINKS = 50_000  # of one file: file systems allow 65,000
READ = """
import sys
from nadpipe.data.views import examine_image
from pathlib import Path
import pandas as pd
table = Path(sys.argv[1])
"""
PLAIN = f"""{READ}
with table.open() as lines:
    next(lines)
    for line in lines:
        examine_image(str(table.parent / line.partition(",")[0]))
"""
ONE_TASK_PER_IMAGE = f"""{READ}
from concurrent.futures import ThreadPoolExecutor
rows = pd.read_csv(table)
with ThreadPoolExecutor(2) as pool:
    infos = list(pool.map(examine_image, [str(table.parent / path) for path in rows["path"]]))
rows["sha256"] = [info.sha256 for info in infos]
rows.to_parquet(table.with_suffix(".parquet"))
"""


def main() -> None:
    """Run each side once on the same table."""
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    given = parse(parser, images=60)
    with tempfile.TemporaryDirectory() as folder:
        table = write_table(Path(folder), given.images)
        options = {"layout": "table", "path": table, "output": table.with_name("i.parquet"), "group_column": "year"}
        sides = {
            "plain loop": lambda: run_command(sys.executable, "-c", PLAIN, table),
            "one task per image, 2 threads": lambda: run_command(sys.executable, "-c", ONE_TASK_PER_IMAGE, table),
            "nadpipe index-images, 2 threads": lambda: nadpipe("index-images", **options, threads=2),
        }
        rows = [measure(side, run) for side, run in sides.items()]
    report(given, "index_images", f"Listing a table of {given.images:,} images of {SIDE} × {SIDE} pixels", rows)


def measure(side: str, run: Callable[[], tuple[float, float]]) -> dict[str, Any]:
    """Run one side and return its row."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, peak = run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "side": side,
        "s": round(seconds, 1),
        "CPU s": round(processor, 1),
        "cores used": round(processor / seconds, 2),
        "peak MiB": round(peak),
    }


def write_table(folder: Path, count: int) -> Path:
    """Write a table of hard links of a few images, a thousand per folder, and return its path."""
    generator = np.random.default_rng(0)
    for number in range(max(FILES, count // LINKS + 1)):
        pixels = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    files = len(list(folder.iterdir()))
    with (folder / "t.csv").open("w") as table:
        table.write("path,year,fish\n")
        for number in range(count):
            name = f"{number // 1000:05d}/{number:07d}.jpg"
            (folder / name).parent.mkdir(exist_ok=True)
            os.link(folder / f"{number % files}.jpg", folder / name)
            table.write(f"{name},{2010 + number % 8},{number % 2}\n")
    return folder / "t.csv"


if __name__ == "__main__":
    main()
