"""Explain an image: which pairs made its similarity to texts, and where."""

import base64
import dataclasses
import io
import json
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import jinja2
import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from nadpipe import attnpool
from nadpipe.artifacts import read_parquet, whole
from nadpipe.errors import NadpipeError
from nadpipe.explorer import as_bytes, firing
from nadpipe.models import Model, attention_pool, image_tower, load_model
from nadpipe.pictures import crop_to_square, heat_overlay
from nadpipe.texts import unit
from nadpipe.views import centre_box, crop_pixels, read_image

_SIDE = 256


def explain(
    image: Annotated[Path, tyro.conf.Positional],
    texts: tuple[str, ...],
    output: Path = Path("explained.html"),
    results: Path = Path("results"),
    architecture: str | None = None,
    pretrained: str | None = None,
    template: str = "{}",
    most: int = 8,
    device: str = "auto",
) -> None:
    """Write an image's own page, and print it: what each pair adds to the cosine of image and text. All pairs sum to it.

    Args:
        image: Image file.
        texts: Texts to compare it with.
        output: HTML page, with where the pairs fire.
        results: Folder of a run's results, for its model and the names of its pairs.
        architecture: Another model than that of the results, as in the config.
        pretrained: Its weights.
        template: Prompt with {} where a text goes.
        most: Pairs shown that add most, and as many that take most away.
        device: auto, cpu, cuda, cuda:1, ….
    """
    if template.count("{}") != 1:
        raise NadpipeError(f"--template: needs {{}} once, not {template!r}")
    if architecture is None:
        architecture, pretrained = _model_of(results)
    photograph = read_image(str(image))
    model = load_model(architecture, pretrained, device)
    made = _decompose(model, photograph, [template.replace("{}", text) for text in texts])
    names = _names(results, model)
    parts = [_part(made, at, text, names, most) for at, text in enumerate(texts)]
    _print(image, parts)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = resources.files("nadpipe").joinpath("templates", "explained.html.j2").read_text(encoding="utf-8")
    about = {"name": image.name, "architecture": model.stamp.architecture, "source": _source(made.seen), "parts": parts}
    with whole(output) as partial:
        partial.write_text(environment.from_string(page).render(about), encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class _Made:
    """One image taken apart."""

    seen: Image.Image
    pool: attnpool.AttentionPool
    x: torch.Tensor  # token, neuron
    attention: torch.Tensor  # head, token
    pairs: torch.Tensor  # text, head, neuron: what each adds to the cosine
    tokens: torch.Tensor  # text, token: likewise
    cosine: torch.Tensor  # text: the model's own


def _model_of(results: Path) -> tuple[str, str | None]:
    """The model that results were made with."""
    path = results / "provenance.json"
    try:
        given = json.loads(path.read_text(encoding="utf-8"))["config"]["model"]
    except (OSError, ValueError, KeyError) as error:
        told = f"{path}: names no model ({type(error).__name__}); make it with snakemake results/provenance.json"
        raise NadpipeError(f"{told}, or give --architecture and --pretrained") from None
    return given["architecture"], given["pretrained"]


def _decompose(model: Model, photograph: Image.Image, prompts: list[str]) -> _Made:
    """Take the image apart, in the crop that the model's own preprocessing sees."""
    preprocessing = model.preprocessing
    [box] = centre_box(photograph.height, photograph.width, preprocessing.image_size)
    pixels = torch.from_numpy(crop_pixels(photograph, [box], preprocessing.interpolation))
    pool = attention_pool(model)
    with torch.inference_mode():
        normal = preprocessing.normalise(pixels.to(model.device))
        own = model.encode_image(normal).float().cpu()
        text = unit(model.embed_texts(prompts).float().cpu())
        z = image_tower(model).activations(normal).cpu()
        x = attnpool.tokens(z, pool)
        attention = attnpool.attention(x, pool)
        coefficient = attnpool.coefficients(attention, x)[0]
        pairs, tokens = attnpool.pair_scores(coefficient, text, pool), attnpool.token_scores(x[0], text, pool)
    corner = (box.crop_top, box.crop_left, box.crop_size, box.resized_height, box.resized_width)
    seen = crop_to_square(photograph, *corner, _SIDE)
    return _Made(seen, pool, x[0], attention[0], pairs, tokens, (unit(own) @ text.T)[0])


def _names(results: Path, model: Model) -> dict[tuple[int, int], str]:
    """What the pairs of a run are called, if it is of the same model."""
    path = results / "pairs.parquet"
    if not path.exists():
        return {}
    table = read_parquet(path, "pairs", model.stamp, columns=["head", "neuron", "active_text"])
    return dict(zip(zip(table["head"], table["neuron"], strict=True), table["active_text"], strict=True))


def _part(made: _Made, at: int, text: str, names: dict[tuple[int, int], str], most: int) -> dict[str, Any]:
    """What is told of one text: the pairs at both ends, and what all others add."""
    scores = made.pairs[at]
    order = scores.flatten().argsort(descending=True)
    chosen = torch.cat([order[:most], order[-most:]]).unique_consecutive()
    head, neuron = chosen // made.pool.neurons, chosen % made.pool.neurons
    maps, _ = as_bytes(firing(made.attention, made.x, head, neuron))
    side = made.pool.grid
    rows = [
        {
            "head": int(h),
            "neuron": int(n),
            "score": float(scores[h, n]),
            "name": names.get((int(h), int(n))),
            "source": _source(heat_overlay(made.seen, one.reshape(side, side).numpy() / 127)),
        }
        for h, n, one in zip(head, neuron, maps, strict=True)
    ]
    where, _ = as_bytes(made.tokens[at, 1:])
    told = sum(row["score"] for row in rows)
    return {
        "text": text,
        "cosine": float(made.cosine[at]),
        "sum": float(scores.double().sum()),
        "rest": float(scores.double().sum()) - told,
        "others": scores.numel() - len(rows),
        "rows": rows,
        "source": _source(heat_overlay(made.seen, where.reshape(side, side).numpy() / 127)),
    }


def _print(image: Path, parts: list[dict[str, Any]]) -> None:
    console = Console(markup=False)
    for part in parts:
        table = Table(title=f"{image.name}, {part['text']}: cosine {part['cosine']:.5f}, sum over pairs {part['sum']:.5f}")
        for name in ("pair", "adds", "goes with"):
            table.add_column(name, justify="right" if name == "adds" else "left")
        for row in part["rows"]:
            table.add_row(f"{row['head']}/{row['neuron']}", f"{row['score']:+.5f}", row["name"] or "–")
        table.add_row(f"{part['others']:,} others", f"{part['rest']:+.5f}", "")
        console.print(table)


def _source(image: Image.Image) -> str:
    """A picture as an address that holds it."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
