"""The interface of a family of image towers.

Each family has its own module, such as clip_resnet.py. Other modules use only the classes below.
"""

import abc
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nadpipe.circuit.attention import AttentionPool
from nadpipe.circuit.readout import Readout
from nadpipe.towers.preprocessing import Preprocessing

Precision = Literal["float32", "bfloat16"]
Part = tuple[str, int | None]  # name and layer of a path to the embedding


class ImageTower(abc.ABC):
    """An image tower that is ready to run: its size, block, precision and device are fixed.

    preprocessing: of the images that this tower takes. pool: weights of the attention for the same image size; None for towers
    that record attention. recipes: of the array `token_embedding` of the features. block: block of the neurons, from 0.
    """

    preprocessing: Preprocessing
    pool: AttentionPool | None
    recipes: tuple[str, ...] = ()
    precision: Precision
    block: int
    device: torch.device

    @property
    @abc.abstractmethod
    def readout(self) -> Readout:
        """Weights of the heads that are read out."""

    @property
    @abc.abstractmethod
    def grid(self) -> int:
        """Side of the square of spatial tokens."""

    @property
    def prefix(self) -> int:
        """Number of tokens that heads read before the spatial ones, such as a class token or the mean token of a pool."""
        return 1

    @property
    def parts(self) -> tuple[Part, ...]:
        """Paths of the rest, in the order of the array `part` of the features; none without a rest."""
        return ()

    @abc.abstractmethod
    def features(self, pixels: Float[Tensor, "view 3 row column"], tokens: bool = False) -> dict[str, Tensor]:
        """Compute the features of views: arrays by name, in float32 for every precision.

        Every tower has `activation`, z of the spatial tokens row by row, and `embedding`, not normalised. Towers without a pool
        add what their trace needs (`nadpipe.circuit.attention.view_trace`), and, if `tokens`, the array `token_embedding`.
        """

    @abc.abstractmethod
    def rebuild(self, features: Mapping[str, Tensor]) -> Float[Tensor, "view embed"]:
        """Compute the embedding, not normalised, from features whose activations may have lost precision, in float32."""

    @abc.abstractmethod
    def embedding(self, pixels: Float[Tensor, "view 3 row column"]) -> Float[Tensor, "view embed"]:
        """Compute the image embedding with all blocks in this tower's precision, not normalised."""

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

    def describe(self, visual: torch.nn.Module) -> str | None:
        """Return in words what open_clip built, for the message about a tower that the family does not recognise."""
        return type(visual).__name__

    @abc.abstractmethod
    def token_size(self, visual: torch.nn.Module) -> int:
        """Return the side of a spatial token in pixels."""

    @abc.abstractmethod
    def open_tower(
        self,
        visual: torch.nn.Module,
        preprocessing: Preprocessing,
        precision: Precision,
        image_size: int | None,
        block: int | None,
        shown_block: int | None,
    ) -> ImageTower:
        """Return a tower that is ready to run. It may share weights with `visual`, which stays unchanged.

        image_size: side of the square images in pixels; None for the model's own.
        block: block of the neurons, from 0; None for the last one that reaches a head that is read out.
        shown_block: block whose activations are taken instead, if its neurons are the same; None for `block`.
        Raises NadpipeError if the tower has no such block or the size is not a whole number of tokens.
        """
