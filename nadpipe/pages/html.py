"""Self-contained HTML pages."""

import base64
import io
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import jinja2
from PIL import Image


def render_template(file: str, filters: Mapping[str, Callable] | None = None, /, **content: Any) -> str:
    """Return the page that a template of this package makes from the content. Missing content raises jinja2.UndefinedError."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= dict(filters or {})
    template = resources.files("nadpipe.pages").joinpath("templates", file).read_text(encoding="utf-8")
    return environment.from_string(template).render(**content)


def image_source(image: Image.Image, kind: str, **options: Any) -> str:
    """Return a data URL that contains the image. kind: an image format of Pillow's, such as JPEG; options: of the format."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
