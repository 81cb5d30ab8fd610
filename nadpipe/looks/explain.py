"""Explain an image's similarity to texts: the pairs that cause it, and where they fire."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nadpipe.circuit.activity import cosine_maps
from nadpipe.circuit.attention import view_trace
from nadpipe.circuit.naming import normalise
from nadpipe.circuit.readout import Readout, coefficients, other_paths, pair_scores, token_scores, token_weights
from nadpipe.circuit.unit_kinds import head_names
from nadpipe.data.views import centre_box, crop_pixels, read_image
from nadpipe.errors import NadpipeError, visible
from nadpipe.pages.html import image_source, render_template
from nadpipe.pages.pictures import colour_bar, crop_to_square, heat_overlay
from nadpipe.store.atomic import atomic_path
from nadpipe.store.kinds.units import UNIT_TABLES
from nadpipe.store.results import read_settings
from nadpipe.store.tables import read_parquet
from nadpipe.towers.model import Model, load_model
from nadpipe.towers.text import text_tower

_SIDE = 256  # pixels


def explain(
    image: Annotated[Path, tyro.conf.Positional],
    texts: tuple[str, ...],
    output: Path = Path("explained.html"),
    results: Path = Path("results"),
    architecture: str | None = None,
    pretrained: str | None = None,
    block: int | None = None,
    template: str = "{}",
    most: int = 8,
    device: str = "auto",
) -> None:
    """Write a page that shows where the pairs of an image fire, and print how much each adds to the cosine with a text.

    The contributions of all pairs, and of the rest in towers that have one, sum to the cosine.

    Args:
        image: Image file.
        texts: Texts to compare the image with.
        output: HTML page.
        results: Folder of a run's results, for its model and the texts of its pairs.
        architecture: Model to use instead of the one in the results, as in the config.
        pretrained: Weights of that model.
        block: Block of that model's neurons, from 0; by default the last one that reaches a head that is read out.
        template: Prompt in which {} stands for the text.
        most: Number of pairs to show of those that add most, and of those that subtract most.
        device: auto, cpu, cuda, cuda:1, ….
    """
    if template.count("{}") != 1:
        raise NadpipeError(f"--template: {template!r} must contain {{}} once; write {{}} where the text goes")
    if architecture is None:
        model_settings = read_settings(results)["model"]
        architecture, pretrained, block = (model_settings.get(key) for key in ("architecture", "pretrained", "block"))
    photograph = read_image(str(image))
    model = load_model(architecture, pretrained, device)
    decomposition = _decompose(model, block, photograph, [template.replace("{}", text) for text in texts])
    names = _pair_names(results, model)
    sections = [_section(decomposition, index, text, names, most) for index, text in enumerate(texts)]
    page = render_template(
        "explained.html.j2",
        name=image.name,
        architecture=model.stamp.architecture,
        source=_source(decomposition.crop),
        sections=sections,
    )
    with atomic_path(output) as partial:
        partial.write_text(page, encoding="utf-8")
    _print(image, sections)
    print(f"made: {output.resolve()}")


@dataclasses.dataclass(frozen=True)
class _Decomposition:
    """The embedding of one image, split into pairs and into tokens.

    crop: the part of the image that the model sees. prefix: tokens before the spatial ones. weight: of each token in the
    coefficients. text: of unit length. pairs, tokens: the amount that each adds to the cosine with each text. other_paths: the
    amount that the rest adds. cosine, length: cosine and norm of the model's own image embedding.
    """

    crop: Image.Image
    readout: Readout
    prefix: int
    x: Float[Tensor, "token neuron"]
    weight: Float[Tensor, "head token"]
    text: Float[Tensor, "text embed"]
    pairs: Float[Tensor, "text head neuron"]
    tokens: Float[Tensor, "text token"]
    other_paths: Float[Tensor, " text"]
    cosine: Float[Tensor, " text"]
    length: float


def _decompose(model: Model, block: int | None, photograph: Image.Image, prompts: list[str]) -> _Decomposition:
    """Decompose the embedding of the view that the model's own preprocessing takes."""
    tower = model.image_tower(block=block)
    preprocessing, readout = tower.preprocessing, tower.readout
    [box] = centre_box(photograph.height, photograph.width, preprocessing.image_size, preprocessing.resize_mode)
    pixels = torch.from_numpy(crop_pixels(photograph, [box], preprocessing.interpolation, preprocessing.fill_color))
    with torch.inference_mode():
        normalised = preprocessing.normalise(pixels.to(tower.device))
        embedding = tower.reference_embedding(normalised)
        text = normalise(text_tower(model).embed_texts(prompts))
        view = view_trace(tower.features(normalised), tower.pool)
        others = other_paths(view, readout)
        rest = torch.zeros_like(embedding[0]) if others is None else others[0]
        pairs = pair_scores(coefficients(view, readout)[0], text, readout, rest)
        tokens = token_scores(view, text, readout, rest)
    corner = (box.crop_top, box.crop_left, box.crop_size, box.resized_height, box.resized_width)
    crop = crop_to_square(photograph, *corner, _SIDE)
    cosine = (normalise(embedding) @ text.T)[0]
    length = float(embedding.norm())
    scores = (pairs.cpu(), tokens.cpu(), (text @ rest / length).cpu(), cosine.cpu())
    traced = (view.activation[0], token_weights(view, readout)[0])
    return _Decomposition(crop, readout, tower.prefix, *traced, text, *scores, length)


def _pair_names(results: Path, model: Model) -> dict[tuple[int, int], str]:
    """Return the text of each pair by head and neuron, or nothing if the results have no table of pairs."""
    path = results / "pairs.parquet"
    if not path.exists():
        return {}
    table = read_parquet(path, UNIT_TABLES["pair"], model.stamp, columns=["head", "neuron", "active_text"])
    return dict(zip(zip(table["head"], table["neuron"], strict=True), table["active_text"], strict=True))


def _section(
    decomposition: _Decomposition, index: int, text: str, names: dict[tuple[int, int], str], most: int
) -> dict[str, Any]:
    """Return the content of the page for one text: the pairs that add or subtract most, and the sum of all others."""
    scores = decomposition.pairs[index]
    order = scores.flatten().argsort(descending=True)
    listed = torch.cat([order[:most], order[-most:]]).unique_consecutive()
    heads, neurons = listed // decomposition.readout.neurons, listed % decomposition.readout.neurons
    view = (decomposition.weight, decomposition.x, heads, neurons, decomposition.text[index], decomposition.length)
    pair_maps = cosine_maps(*view, decomposition.readout, decomposition.prefix).cpu()
    token_map = decomposition.tokens[index, decomposition.prefix :]
    pair_reach, token_reach = float(pair_maps.abs().max()), float(token_map.abs().max())
    side = round(len(token_map) ** 0.5)
    head_name = head_names(decomposition.readout.layer.tolist())

    def overlay(values: Tensor, reach: float) -> str:
        return _source(heat_overlay(decomposition.crop, values.reshape(side, side).numpy() / (reach or 1)))

    rows = [
        {
            "pair": f"{head_name[head]}/{neuron}",
            "score": float(scores[head, neuron]),
            "name": names.get((head, neuron)),
            "source": overlay(values, pair_reach),
        }
        for head, neuron, values in zip(heads.tolist(), neurons.tolist(), pair_maps, strict=True)
    ]
    total = float(scores.double().sum())
    return {
        "text": text,
        "cosine": float(decomposition.cosine[index]),
        "sum": total,
        "other_paths": float(decomposition.other_paths[index]),
        "rest": total - sum(float(scores[head, neuron]) for head, neuron in zip(heads, neurons, strict=True)),
        "others": scores.numel() - len(rows),
        "rows": rows,
        "source": overlay(token_map, token_reach),
        "bar": image_source(colour_bar(token_reach), "PNG"),
        "token_reach": token_reach,
        "pair_bar": image_source(colour_bar(pair_reach), "PNG"),
        "pair_reach": pair_reach,
    }


def _print(image: Path, sections: list[dict[str, Any]]) -> None:
    console = Console(markup=False, emoji=False)
    for section in sections:
        sums = f"cosine {section['cosine']:.5f}, sum over pairs {section['sum']:.5f}"
        sums += f", other paths {section['other_paths']:.5f}" if section["other_paths"] else ""
        table = Table(title=visible(f"{image.name}, {section['text']}: {sums}"))
        for name in ("pair", "adds", "text by correlation"):
            table.add_column(name, justify="right" if name == "adds" else "left")
        for row in section["rows"]:
            table.add_row(row["pair"], f"{row['score']:+.5f}", visible(row["name"] or "–"))
        table.add_row(f"{section['others']:,} others", f"{section['rest']:+.5f}", "")
        console.print(table)


def _source(image: Image.Image) -> str:
    return image_source(image, "JPEG", quality=85)
