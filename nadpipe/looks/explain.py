"""Explain an image's similarity to texts: the pairs that cause it, and where they fire."""

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
from nadpipe.circuit.readout import pair_scores, token_scores, token_weights
from nadpipe.circuit.unit_kinds import head_names
from nadpipe.data.views import read_image
from nadpipe.errors import NadpipeError, visible
from nadpipe.library.decomposition import Decomposition, decompose
from nadpipe.library.results import read_names
from nadpipe.pages.html import image_source, render_template
from nadpipe.pages.pictures import colour_bar, heat_overlay
from nadpipe.store.atomic import atomic_path
from nadpipe.store.results import read_settings
from nadpipe.towers.model import load_model

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
    decomposition = decompose(model, photograph, block, read_names(results, model.stamp))
    embedded = decomposition.embed_texts(texts, (template,))
    sections = [_section(decomposition, text, query, most) for text, query in zip(texts, embedded, strict=True)]
    page = render_template(
        "explained.html.j2",
        name=image.name,
        architecture=model.stamp.architecture,
        source=_source(decomposition.crops[0]),
        sections=sections,
    )
    with atomic_path(output) as partial:
        partial.write_text(page, encoding="utf-8")
    _print(image, sections)
    print(f"made: {output.resolve()}")


def _section(decomposition: Decomposition, text: str, query: Float[Tensor, " embed"], most: int) -> dict[str, Any]:
    """Return the content of the page for one text: the pairs that add or subtract most, and the sum of all others.

    query: the text's embedding, of unit length.
    """
    readout, prefix = decomposition.readout, decomposition.prefix
    rest, length = decomposition.rest[0], float(decomposition.embedding[0].norm())
    scores = pair_scores(decomposition.coefficient[0], query[None], readout, rest)[0].cpu()
    order = scores.flatten().argsort(descending=True)
    listed = torch.cat([order[:most], order[-most:]]).unique_consecutive()
    heads, neurons = listed // readout.neurons, listed % readout.neurons
    weight, x = token_weights(decomposition.trace, readout)[0], decomposition.trace.activation[0]
    pair_maps = cosine_maps(weight, x, heads, neurons, query, length, readout, prefix).cpu()
    token_map = token_scores(decomposition.trace, query[None], readout, rest)[0, prefix:].cpu()
    pair_reach, token_reach = float(pair_maps.abs().max()), float(token_map.abs().max())
    side = round(len(token_map) ** 0.5)
    head_name = head_names(readout.layer.tolist())

    def overlay(values: Tensor, reach: float) -> str:
        return _source(heat_overlay(decomposition.crops[0], values.reshape(side, side).numpy() / (reach or 1)))

    rows = [
        {
            "pair": f"{head_name[head]}/{neuron}",
            "score": float(scores[head, neuron]),
            "name": decomposition.names.get((head, neuron)),
            "source": overlay(values, pair_reach),
        }
        for head, neuron, values in zip(heads.tolist(), neurons.tolist(), pair_maps, strict=True)
    ]
    total = float(scores.double().sum())
    return {
        "text": text,
        "cosine": float(query @ decomposition.embedding[0] / length),
        "sum": total,
        "other_paths": float(query @ rest / length),
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
