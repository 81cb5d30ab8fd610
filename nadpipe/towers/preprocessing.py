"""Preprocessing of images: size, resizing and normalisation."""

import dataclasses
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nadpipe.errors import NadpipeError


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Description of a tower's images: side in pixels, mean and standard deviation per channel, resizing filter.

    resize_mode: shortest scales the short side and crops the centre, longest scales the long side and pads with grey level
    `fill_color`, squash scales both sides.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill_color: int = 0

    def normalise(self, pixels: UInt8[Tensor, "view row column 3"]) -> Float[Tensor, "view 3 row column"]:
        """Return the tower's input for 8-bit pixels.

        The channels stay last in memory, because convolutions are fastest that way.
        """
        mean, std = (torch.tensor(values, device=pixels.device) for values in (self.mean, self.std))
        return pixels.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)


def read_preprocessing(architecture: str, image_size: int | list[int], values: dict[str, Any]) -> Preprocessing:
    """Return the preprocessing for an image size and open_clip's preprocessing values.

    Raises NadpipeError if images are not square.
    """
    if isinstance(image_size, list | tuple):
        if image_size[0] != image_size[1]:
            raise NadpipeError(f"{architecture}: image_size {image_size} is not square; choose a model with square images")
        image_size = image_size[0]
    mean, std = (tuple(float(value) for value in values[name]) for name in ("mean", "std"))
    fill_color = values.get("fill_color", 0) if values["resize_mode"] == "longest" else 0
    return Preprocessing(image_size, mean, std, values["interpolation"], values["resize_mode"], fill_color)
