"""Compare two ways from tokens to label maps at several image sizes: logits of all pixels of an image, and blocks of rows.

    python benchmarks/canvas.py

The usual side makes the logits of every crop as large as the crop, sums them over the image, divides, resizes them to the mask
and takes the largest (mmsegmentation's slide_inference, SCLIP's forward_slide). It skips sizes whose logits need over 8 GiB.
Memory is measured in one process per side, time in this process.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from common import make_parser, parse, report, run_command, timed

from nadpipe.circuit.canvas import Labelling, arrange, label, make_canvas
from nadpipe.data.views import sliding_boxes

GRID, CROP = 12, 384  # RN50x16
SIZES = ["375x500", "1200x1600", "3872x5184"]
MAX_LOGITS = 2**33  # bytes
TITLES = {"usual": "all logits of the image", "blocks": "nadpipe, blocks of rows"}


def main() -> None:
    """Measure both sides at every size, or run one side in this process (--side)."""
    parser = make_parser(__doc__)
    parser.add_argument("--classes", type=int, default=171)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="images, as <height>x<width>")
    parser.add_argument(
        "--side", choices=("usual", "blocks", "baseline"), help="run one side on the first size, and report nothing"
    )
    given = parse(parser, classes=3, sizes=["90x120"])
    sizes = [(int(height), int(width)) for height, width in (size.split("x") for size in given.sizes)]
    if given.side:
        boxes, logits = make_inputs(sizes[0], given.classes)
        if given.side in SIDES:
            SIDES[given.side](boxes, logits, sizes[0])
        return
    rows = [row for size in sizes for row in measure(size, given.classes)]
    report(given, "canvas", f"Label map of one image from its tokens' logits, {given.classes} classes", rows)


def measure(size: tuple[int, int], classes: int) -> list[dict]:
    """Return a row for each side that fits in memory."""
    height, width = size
    sides = ["blocks"] if height * width * classes * 4 > MAX_LOGITS else ["usual", "blocks"]
    command = [sys.executable, Path(__file__).resolve(), "--classes", str(classes), "--sizes", f"{height}x{width}", "--side"]
    _, baseline = run_command(*command, "baseline")
    boxes, logits = make_inputs(size, classes)
    rows = []
    for side in sides:
        _, peak = run_command(*command, side)
        runs = [timed(SIDES[side], boxes, logits, size) for _ in range(3)]
        labels = runs[0][1]
        row = {
            "megapixels": round(height * width / 1e6, 1),
            "side": TITLES[side],
            "s": round(min(seconds for seconds, _ in runs), 3),
            "MiB above baseline": round(peak - baseline),
            "same labels": "",
        }
        if side == "usual":
            usual_labels = labels
        elif "usual" in sides:
            row["same labels"] = f"{float((labels == usual_labels).float().mean()):.4%}"
        rows.append(row)
    return rows


def make_inputs(size: tuple[int, int], classes: int) -> tuple[list, torch.Tensor]:
    """Return the crops of an image whose short side is resized to 384 pixels, and random logits of their tokens."""
    boxes = sliding_boxes(*size, CROP, CROP, 0.5)
    logits = torch.randn(len(boxes), classes, GRID * GRID, generator=torch.Generator().manual_seed(0)) / 20
    return boxes, logits


def usual(boxes: list, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Label an image with maps of all classes at every step."""
    rows, columns = boxes[0].resized_height, boxes[0].resized_width
    total, count = torch.zeros(logits.shape[1], rows, columns), torch.zeros(rows, columns)
    for box, crop_logits in zip(boxes, logits, strict=True):
        pixels = F.interpolate(crop_logits.unflatten(1, (GRID, GRID))[None], size=CROP, mode="bilinear")[0]
        place = slice(box.crop_top, box.crop_top + CROP), slice(box.crop_left, box.crop_left + CROP)
        total[:, *place] += pixels
        count[place] += 1
    return F.interpolate((total / count)[None], size=size, mode="bilinear")[0].argmax(0)


def blocks(boxes: list, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Label an image with nadpipe."""
    top, left = [box.crop_top for box in boxes], [box.crop_left for box in boxes]
    canvas = make_canvas(top, left, CROP, GRID, (boxes[0].resized_height, boxes[0].resized_width), size)
    return label(arrange(logits, top, left, GRID), canvas, Labelling(torch.arange(logits.shape[1]), logits.shape[1], 40.0))


SIDES = {"usual": usual, "blocks": blocks}


if __name__ == "__main__":
    main()
