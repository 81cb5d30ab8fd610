"""Decompose images in a program: coefficients, what each pair adds to the embedding or to a text, and where it fires."""

import dataclasses
import functools
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from nadpipe.circuit import activity
from nadpipe.circuit import readout as circuit
from nadpipe.circuit.attention import view_trace
from nadpipe.circuit.naming import normalise
from nadpipe.circuit.readout import Readout, Trace
from nadpipe.circuit.unit_kinds import head_names
from nadpipe.data.views import centre_box, crop_pixels, read_image, to_rgb
from nadpipe.errors import NadpipeError
from nadpipe.pages.html import image_source
from nadpipe.pages.pictures import crop_to_square, heat_overlay
from nadpipe.towers.model import Model
from nadpipe.towers.text import TextTower, embed_prompts, text_tower

Photograph = Image.Image | str | Path
Names = Mapping[tuple[int, int], str]  # text of each pair, by head and neuron
TEMPLATES = ("{}",)

_SIDE = 256  # pixels of a picture's side
_SHOWN = 6  # pairs in a notebook


@dataclasses.dataclass(frozen=True, repr=False)
class Decomposition:
    """The embeddings of some images, split exactly into pairs and a rest.

    images: number of images. crops: the part of each image that the model sees. embedding: the output of the model's own image
    tower, not normalised. trace: activations and attention. prefix: tokens before the spatial ones. names: texts of the pairs.
    """

    model: Model
    crops: tuple[Image.Image, ...]
    embedding: Float[Tensor, "image embed"]
    trace: Trace
    readout: Readout
    prefix: int
    names: Names = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        """Return the sizes."""
        pairs = f"{self.readout.heads} heads × {self.readout.neurons} neurons"
        return f"<Decomposition of {self.images} images by {self.model.stamp.architecture}: {pairs}>"

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.crops)

    @functools.cached_property
    def coefficient(self) -> Float[Tensor, "image head neuron"]:
        """Coefficient s of every pair: what its write vector is multiplied with."""
        return circuit.coefficients(self.trace, self.readout)

    @functools.cached_property
    def rest(self) -> Float[Tensor, "image embed"]:
        """The part of each embedding that reaches it by other paths; 0 in a CLIP-ResNet."""
        others = circuit.other_paths(self.trace, self.readout)
        return torch.zeros_like(self.embedding) if others is None else others

    @functools.cached_property
    def reconstruction(self) -> Float[Tensor, "image embed"]:
        """The sum of all pairs and the rest, which equals `embedding` up to rounding."""
        return circuit.sum_pairs(self.coefficient, self.readout) + self.rest

    @property
    def residual(self) -> Float[Tensor, " image"]:
        """Relative difference between `reconstruction` and `embedding`."""
        return circuit.residual(self.reconstruction, self.embedding)

    def shares(self, image: int = 0) -> Float[Tensor, "head neuron"]:
        """Compute ⟨c[h, n], y⟩ / ‖y‖²: the share of an image's embedding that each pair carries.

        Pairs that point against the embedding have negative shares. All of them and that of the rest sum to 1.
        """
        y = self.embedding[image]
        return circuit.pair_scores(self.coefficient[image], normalise(y)[None], self.readout, self.rest[image])[0]

    def text_scores(
        self, texts: Sequence[str], image: int = 0, templates: Sequence[str] = TEMPLATES
    ) -> Float[Tensor, "text head neuron"]:
        """Compute what each pair adds to the cosine of an image and each text. With the rest's amount, they sum to the cosine.

        templates: prompts with {} in place of the text; their embeddings are averaged.
        """
        text = self.embed_texts(texts, templates)
        return circuit.pair_scores(self.coefficient[image], text, self.readout, self.rest[image])

    def cosines(self, texts: Sequence[str], templates: Sequence[str] = TEMPLATES) -> pd.DataFrame:
        """Return the model's own cosine of every image (row) and text (column)."""
        values = normalise(self.embedding) @ self.embed_texts(texts, templates).T
        return pd.DataFrame(values.cpu().numpy(), columns=list(texts)).rename_axis("image")

    def embed_texts(self, texts: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Float[Tensor, "text embed"]:
        """Compute the embeddings of texts, of unit length. Raises NadpipeError if there are none or a template is invalid."""
        if isinstance(texts, str) or not texts:
            raise NadpipeError("texts: give a list of at least one text")
        wrong = next((template for template in templates if template.count("{}") != 1), None)
        if wrong is not None or not templates:
            raise NadpipeError(f"templates: {wrong!r} must contain {{}} once; write {{}} where the text goes")
        with torch.inference_mode():
            return embed_prompts(self._text_tower, list(texts), templates)

    @functools.cached_property
    def _text_tower(self) -> TextTower:
        return text_tower(self.model)

    def top_pairs(self, most: int = 10, image: int = 0) -> pd.DataFrame:
        """Return the pairs that carry the largest shares of an image's embedding, by absolute value.

        Columns: pair (<head>/<neuron>), head, neuron, coefficient, share, and text, the pair's name, if there are names.
        """
        shares = self.shares(image)
        order = shares.flatten().abs().argsort(descending=True, stable=True)[:most]
        return self._table(order, image).assign(share=shares.flatten()[order].cpu().numpy()).pipe(_text_last)

    def explain(
        self, texts: Sequence[str], most: int = 8, image: int = 0, templates: Sequence[str] = TEMPLATES
    ) -> pd.DataFrame:
        """Return the pairs that add most to the cosine of an image and each text, and those that subtract most.

        Columns: for_text, pair, head, neuron, coefficient, adds, and text, the pair's name. The last rows of each text have no
        pair: what all other pairs add, and what the rest adds. `adds` sums to the cosine over all rows of a text.
        """
        scores = self.text_scores(texts, image, templates)
        rest = self.embed_texts(texts, templates) @ self.rest[image] / self.embedding[image].norm()
        tables = []
        for number, text in enumerate(texts):
            flat = scores[number].flatten()
            order = flat.argsort(descending=True, stable=True)
            listed = torch.cat([order[:most], order[max(most, len(order) - most) :]])
            adds = flat[listed].double().cpu().numpy()
            table = self._table(listed, image).assign(adds=adds)
            others = float(flat.double().sum()) - adds.sum()
            last = pd.DataFrame({"pair": ["all others", "rest"], "adds": [others, float(rest[number])]})
            tables.append(pd.concat([table, last], ignore_index=True).assign(for_text=text))
        explained = pd.concat(tables, ignore_index=True).astype({"head": "Int64", "neuron": "Int64"})
        return _text_last(explained[["for_text", *(name for name in explained if name != "for_text")]])

    def firing(self, head: int, neuron: int, image: int = 0) -> Float[np.ndarray, "row column"]:
        """Compute where a pair fires in an image: the part of its coefficient from each spatial token.

        Raises NadpipeError if the model has no such pair.
        """
        if not (0 <= head < self.readout.heads and 0 <= neuron < self.readout.neurons):
            raise NadpipeError(
                f"pair {head}/{neuron}: not in the model; it has heads 0 to {self.readout.heads - 1} and neurons 0 to "
                f"{self.readout.neurons - 1}"
            )
        weight, x = circuit.token_weights(self.trace, self.readout)[image], self.trace.activation[image]
        [values] = activity.firing(weight, x, torch.tensor([head]), torch.tensor([neuron]), self.prefix)
        side = round(len(values) ** 0.5)
        return values.reshape(side, side).cpu().numpy()

    def picture(self, head: int, neuron: int, image: int = 0) -> Image.Image:
        """Draw where a pair fires in an image: orange if positive, blue if negative, scaled to the largest value."""
        values = self.firing(head, neuron, image)
        return heat_overlay(self.crops[image], values / (np.abs(values).max() or 1))

    def _table(self, flat: Tensor, image: int) -> pd.DataFrame:
        """Return one row per pair. flat: indices of the pairs in (head, neuron)."""
        names = head_names(self.readout.layer.tolist())
        head, neuron = (index.cpu().numpy() for index in (flat // self.readout.neurons, flat % self.readout.neurons))
        pairs = list(zip(head.tolist(), neuron.tolist(), strict=True))
        columns = {
            "pair": [f"{names[h]}/{n}" for h, n in pairs],
            "head": head,
            "neuron": neuron,
            "coefficient": self.coefficient[image].flatten()[flat].cpu().numpy(),
        }
        return pd.DataFrame(columns | ({"text": [self.names.get(pair) for pair in pairs]} if self.names else {}))

    def _repr_html_(self) -> str:
        """Show the first image and where its largest pairs fire, in a notebook."""
        top = self.top_pairs(_SHOWN)
        pictures = [("", self.crops[0])]
        for row in top.to_dict("records"):
            name = f"{row['pair']} {row['share']:.1%} {row.get('text') or ''}"
            pictures.append((name, self.picture(row["head"], row["neuron"])))
        return "".join(
            f'<figure style="display:inline-block;margin:4px"><img src="{image_source(picture, "JPEG", quality=85)}">'
            f"<figcaption>{html.escape(name)}</figcaption></figure>"
            for name, picture in pictures
        )


def decompose(
    model: Model,
    images: Photograph | Sequence[Photograph],
    block: int | None = None,
    names: Names | None = None,
    batch_size: int = 16,
) -> Decomposition:
    """Decompose the embeddings of images, preprocessed as for the model's own `encode_image`.

    images: an image of Pillow, the path of an image file, or several of them. block: block of the neurons, from 0; None for the
    last one that reaches a head that is read out. names: texts of pairs, such as `open_results(...).names`.

    All that it returns is in memory: for RN50x16 about 1.2 MB per image, and 0.6 MB more once coefficients are computed.
    Raises NadpipeError if there are no images, if one is not readable, or if the model has no such block.
    """
    listed = [images] if isinstance(images, Photograph) else list(images)
    if not listed:
        raise NadpipeError("images: none is given; give at least one")
    tower = model.image_tower(block=block)
    seen, crops, features, embeddings = tower.preprocessing, [], [], []
    for start in range(0, len(listed), batch_size):
        pixels = []
        for image in listed[start : start + batch_size]:
            photograph = to_rgb(image) if isinstance(image, Image.Image) else read_image(str(image))
            [box] = centre_box(photograph.height, photograph.width, seen.image_size, seen.resize_mode)
            pixels.append(crop_pixels(photograph, [box], seen.interpolation, seen.fill_color))
            corner = (box.crop_top, box.crop_left, box.crop_size, box.resized_height, box.resized_width)
            crops.append(crop_to_square(photograph, *corner, _SIDE))
        with torch.inference_mode():
            normalised = seen.normalise(torch.from_numpy(np.concatenate(pixels)).to(tower.device))
            features.append(tower.features(normalised))
            embeddings.append(tower.reference_embedding(normalised))
    joined = {name: torch.cat([batch[name] for batch in features]) for name in features[0]}
    with torch.inference_mode():
        trace = view_trace(joined, tower.pool)
    return Decomposition(model, tuple(crops), torch.cat(embeddings), trace, tower.readout, tower.prefix, names or {})


def _text_last(table: pd.DataFrame) -> pd.DataFrame:
    return table[[name for name in table if name != "text"] + [name for name in table if name == "text"]]
