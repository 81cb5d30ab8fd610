"""From tokens to label maps: logits of a whole image as usual, against blocks of rows. Time and peak memory by image size.

    python benchmarks/canvas.py

Memory is measured in processes of their own, time in one. The usual side makes every crop's logits as large as the crop,
adds them up over the image, divides, resizes to the mask and takes the largest (mmsegmentation's slide_inference, SCLIP's
forward_slide); it is left out where its one map of logits would not fit the memory.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from common import report, run_command, timed

from nadpipe.circuit.canvas import Labelling, arrange, label, make_canvas
from nadpipe.data.views import sliding_boxes

GRID, CROP = 12, 384  # RN50x16
SIZES = [(375, 500), (1200, 1600), (3872, 5184)]
_MOST = 2**33  # bytes of one map of logits


def main() -> None:
    """Measure both sides at every size, or (with --side) one of them in this process."""
    options = argparse.ArgumentParser()
    options.add_argument("--classes", type=int, default=171)
    options.add_argument("--side", choices=("usual", "blocks", "nothing"))
    options.add_argument("--size", type=int, nargs=2, default=SIZES[0])
    given = options.parse_args()
    if given.side:
        boxes, logits = inputs(tuple(given.size), given.classes)
        if given.side in SIDES:
            SIDES[given.side](boxes, logits, tuple(given.size))
        return
    rows = []
    for size in SIZES:
        sides = ["blocks"] if size[0] * size[1] * given.classes * 4 > _MOST else ["usual", "blocks"]
        command = [sys.executable, Path(__file__).resolve(), "--classes", str(given.classes), "--size", *map(str, size)]
        _, start = run_command(*command, "--side", "nothing")
        for side in sides:
            _, peak = run_command(*command, "--side", side)
            boxes, logits = inputs(size, given.classes)
            took = min(timed(SIDES[side], boxes, logits, size)[0] for _ in range(3))
            rows.append(
                {
                    "megapixels": round(size[0] * size[1] / 1e6, 1),
                    "side": {"usual": "all logits of the image", "blocks": "nadpipe, blocks of rows"}[side],
                    "s": round(took, 3),
                    "MiB above the start": round(peak - start),
                    "same labels": "" if side == "usual" else compared(size, given.classes) if "usual" in sides else "",
                }
            )
    report("canvas", f"Label map of one image from its tokens' logits, {given.classes} classes", rows)


def inputs(size: tuple[int, int], classes: int) -> tuple:
    """The boxes of an image with its short side at 384, and random logits on their tokens."""
    boxes = sliding_boxes(*size, CROP, CROP, 0.5)
    logits = torch.randn(len(boxes), classes, GRID * GRID, generator=torch.Generator().manual_seed(0)) / 20
    return boxes, logits


def compared(size: tuple[int, int], classes: int) -> str:
    """The share of pixels that both sides label alike."""
    boxes, logits = inputs(size, classes)
    same = usual(boxes, logits, size) == blocks(boxes, logits, size)
    return f"{float(same.float().mean()):.4%}"


def usual(boxes: list, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Every step on maps of all classes."""
    rows, columns = boxes[0].resized_height, boxes[0].resized_width
    total, count = torch.zeros(logits.shape[1], rows, columns), torch.zeros(rows, columns)
    for box, one_crop in zip(boxes, logits, strict=True):
        pixels = F.interpolate(one_crop.unflatten(1, (GRID, GRID))[None], size=CROP, mode="bilinear")[0]
        part = slice(box.crop_top, box.crop_top + CROP), slice(box.crop_left, box.crop_left + CROP)
        total[:, *part] += pixels
        count[part] += 1
    return F.interpolate((total / count)[None], size=size, mode="bilinear")[0].argmax(0)


def blocks(boxes: list, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """nadpipe's own."""
    top, left = [box.crop_top for box in boxes], [box.crop_left for box in boxes]
    canvas = make_canvas(top, left, CROP, GRID, (boxes[0].resized_height, boxes[0].resized_width), size)
    return label(arrange(logits, top, left, GRID), canvas, Labelling(torch.arange(logits.shape[1]), logits.shape[1], 40.0))


SIDES = {"usual": usual, "blocks": blocks}


if __name__ == "__main__":
    main()
