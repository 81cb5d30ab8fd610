"""Pictures that nadpipe wrote as PNG: the checksums that the format has are compared when a picture is read."""

import io
from pathlib import Path

from PIL import Image

from nadpipe.store.checksums import damaged

_END = b"\0\0\0\0IEND\xaeB`\x82"


def read_png(path: Path) -> Image.Image:
    """Read a PNG into memory. Raises OSError if the file is missing, and NadpipeError if it is damaged.

    Pillow compares the checksums of pixels only in `verify`, after which an image cannot be read.
    """
    content = path.read_bytes()
    if not content.endswith(_END):
        raise damaged(path)
    try:
        Image.open(io.BytesIO(content), formats=["PNG"]).verify()
        image = Image.open(io.BytesIO(content), formats=["PNG"])
        image.load()
    except Exception:  # on damaged files, decoders raise errors of many types
        raise damaged(path) from None
    return image
