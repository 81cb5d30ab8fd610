"""The interface of a family of image towers.

Each family has its own module, such as clip_resnet.py. Other modules use only the classes below.
"""

import abc
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nadpipe.circuit.attention import AttentionPool
from nadpipe.towers.preprocessing import Preprocessing

Precision = Literal["float32", "bfloat16"]


class ImageTower(abc.ABC):
    """An image tower that is ready to run: its size, block, precision and device are fixed.

    preprocessing: of the images that this tower takes. pool: readout and attention weights for the same image size. block:
    index of the block whose activations are returned, from 0.
    """

    preprocessing: Preprocessing
    pool: AttentionPool
    precision: Precision
    block: int
    device: torch.device

    @abc.abstractmethod
    def activations(self, pixels: Float[Tensor, "view 3 row column"]) -> Float[Tensor, "view spatial neuron"]:
        """Compute the block's spatial activations z, row by row, in float32 for every precision."""

    @abc.abstractmethod
    def embedding(self, pixels: Float[Tensor, "view 3 row column"]) -> Float[Tensor, "view embed"]:
        """Compute the image embedding with all blocks in this tower's precision, not normalised."""

    @abc.abstractmethod
    def pool_embedding(self, z: Float[Tensor, "view spatial neuron"]) -> Float[Tensor, "view embed"]:
        """Compute the image embedding from activations with the model's own attention pool in float32, not normalised."""

    @abc.abstractmethod
    def reference_embedding(
        self, pixels: Float[Tensor, "view 3 row column"], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "view embed"]:
        """Compute the image embedding with open_clip's unchanged code in float32 or float64, not normalised.

        Raises RuntimeError on a tower made by `without_reference`.
        """

    @abc.abstractmethod
    def without_reference(self) -> "ImageTower":
        """Return the same tower without the weights that only `reference_embedding` needs."""


class Family(abc.ABC):
    """A kind of image tower. `requirement` completes the sentence "nadpipe needs ..."."""

    requirement: str

    @abc.abstractmethod
    def accepts(self, config: dict[str, Any]) -> bool:
        """Return True if an open_clip model config describes a tower of this family."""

    @abc.abstractmethod
    def recognises(self, visual: torch.nn.Module) -> bool:
        """Return True if open_clip built the image tower that the family expects."""

    @abc.abstractmethod
    def token_size(self, visual: torch.nn.Module) -> int:
        """Return the side of a spatial token in pixels."""

    @abc.abstractmethod
    def pool(self, visual: torch.nn.Module) -> AttentionPool:
        """Return the readout and attention weights for the model's own image size."""

    @abc.abstractmethod
    def open_tower(
        self,
        visual: torch.nn.Module,
        preprocessing: Preprocessing,
        precision: Precision,
        image_size: int | None,
        block: int | None,
    ) -> ImageTower:
        """Return a tower that is ready to run. It may share weights with `visual`, which stays unchanged.

        image_size: side of the square images in pixels; None for the model's own.
        block: block whose activations are taken, from 0; None for the last one.
        Raises NadpipeError if the tower has no such block or the size is not a whole number of tokens.
        """
