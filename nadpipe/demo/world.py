"""Draw the demo world: scenes with known content.

A scene shows up to three objects on a background. Every kind of object has its own motif (scales, veins, rings, …), which is
visible in a small patch. Colours and textures occur with all kinds. A `Scene` contains the picture and its full description;
`draw_scene` draws one at random.
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 35, 40),
    "green": (40, 150, 60),
    "blue": (45, 75, 210),
    "yellow": (240, 215, 40),
    "orange": (240, 125, 25),
    "purple": (130, 50, 170),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
TEXTURES = ("plain", "striped", "dotted", "checkered")
BACKGROUNDS = ("grass", "sand", "sky", "water", "bricks")
# Kind -> colour of the motif's lines. None of these is in COLOURS.
KINDS: dict[str, tuple[int, int, int]] = {
    "fish": (15, 50, 105),
    "leaf": (190, 235, 110),
    "ball": (250, 160, 200),
    "house": (130, 230, 245),
    "snail": (110, 68, 35),
    "basket": (225, 196, 145),
    "star": (175, 255, 215),
    "kite": (0, 140, 140),
}
CLASSES = (*KINDS, *BACKGROUNDS)  # a mask value is a position in this tuple
CONCEPTS = (*KINDS, *COLOURS, *TEXTURES, *BACKGROUNDS)  # all words that can be true of a scene
TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "{} in a scene")

Place = tuple[float, float, float]  # y, x and radius of an object, in pixels
_OVERSAMPLE = 2  # outlines are drawn this many times larger, then averaged


@dataclasses.dataclass(frozen=True)
class Thing:
    """Describe one object of a scene."""

    kind: str
    colour: str
    texture: str


@dataclasses.dataclass(frozen=True)
class Scene:
    """Hold a picture and its content. Values of `mask` are positions in CLASSES."""

    image: UInt8[np.ndarray, "height width 3"]
    mask: UInt8[np.ndarray, "height width"]
    background: str
    things: tuple[Thing, ...]

    def truth(self) -> dict[str, int]:
        """Return 1 for each word of CONCEPTS that is true of the scene, else 0."""
        true_words = {self.background}
        for thing in self.things:
            true_words |= {thing.kind, thing.colour, thing.texture}
        return {word: int(word in true_words) for word in CONCEPTS}


@dataclasses.dataclass(frozen=True)
class Odds:
    """Define the distribution of scenes.

    count: probabilities of 0, 1, 2, … objects. radius: smallest and largest radius of an object, in pixels. weight: relative
    frequencies of words, by default 1.
    """

    count: tuple[float, ...] = (0.06, 0.44, 0.32, 0.18)
    radius: tuple[float, float] = (28.0, 62.0)
    weight: dict[str, float] = dataclasses.field(default_factory=dict)

    def pick(self, rng: np.random.Generator, words: tuple[str, ...]) -> str:
        """Draw one of the words with probabilities proportional to their weights."""
        weight = np.array([self.weight.get(word, 1.0) for word in words])
        return words[rng.choice(len(words), p=weight / weight.sum())]


def draw_scene(rng: np.random.Generator, height: int, width: int, odds: Odds) -> Scene:
    """Draw a scene of the given size in pixels. All random numbers come from `rng`."""
    background = odds.pick(rng, BACKGROUNDS)
    image = _draw_background(rng, background, height, width)
    mask = np.full((height, width), CLASSES.index(background), np.uint8)
    things: list[Thing] = []
    placed: list[Place] = []
    for _ in range(rng.choice(len(odds.count), p=odds.count)):
        thing = Thing(odds.pick(rng, tuple(KINDS)), odds.pick(rng, tuple(COLOURS)), odds.pick(rng, TEXTURES))
        place = _find_place(rng, height, width, odds.radius, placed)
        if place is None:
            break
        placed.append(place)
        things.append(thing)
        _draw_thing(rng, thing, place, image, mask)
    image *= rng.uniform(0.88, 1.08)
    image += rng.normal(size=image.shape) * 3
    return Scene(np.clip(image, 0, 255).astype(np.uint8), mask, background, tuple(things))


def write_caption(rng: np.random.Generator, scene: Scene) -> str:
    """Write a caption that is true of the scene but usually incomplete."""
    phrases = [_write_phrase(rng, scene.things[index]) for index in rng.permutation(len(scene.things))]
    if phrases and rng.random() < 0.2:
        phrases = phrases[:1]
    text = " and ".join(phrases)
    if not phrases or rng.random() < 0.75:
        text = f"{text} on {scene.background}" if text else scene.background
    return TEMPLATES[rng.integers(len(TEMPLATES))].format(text)


def _write_phrase(rng: np.random.Generator, thing: Thing) -> str:
    words = [thing.kind]
    if rng.random() < 0.6:
        words.insert(0, thing.texture)
    if rng.random() < 0.75:
        words.insert(0, thing.colour)
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


def _find_place(
    rng: np.random.Generator, height: int, width: int, radius: tuple[float, float], placed: list[Place]
) -> Place | None:
    """Return centre and radius of a new object that barely touches the placed ones, or None if there is no room."""
    low, high = radius
    for _ in range(30):
        r = rng.uniform(low, min(high, low + (high - low) / (1 + 0.6 * len(placed))))
        y, x = rng.uniform(0.6 * r, height - 0.6 * r), rng.uniform(0.6 * r, width - 0.6 * r)
        if all(math.hypot(y - v, x - u) > 0.95 * (r + s) for v, u, s in placed):
            return y, x, r
    return None


def _draw_background(rng: np.random.Generator, kind: str, height: int, width: int) -> Float[np.ndarray, "height width 3"]:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    grain = rng.normal(size=(height, width, 1)).astype(np.float32)
    if kind == "grass":
        blades = 26 * np.sin(x * 1.1 + 6 * _smooth_noise(rng, height, width, 14))
        colour = np.array([72.0, 138, 52]) + blades[..., None] + 16 * grain
    elif kind == "sand":
        ripples = 12 * np.sin(y * 0.35 + 4 * _smooth_noise(rng, height, width, 30))
        colour = np.array([214.0, 188, 140]) + ripples[..., None] + 12 * grain
    elif kind == "sky":
        clouds = np.clip(_smooth_noise(rng, height, width, 36), 0, 2)[..., None]
        colour = np.array([120.0, 176, 238]) + (y / height)[..., None] * 45 + clouds * np.array([60.0, 45, 15])
    elif kind == "water":
        waves = 24 * np.sin(y * 0.42 + np.sin(x * 0.09 + rng.uniform(0, 6)) * 2)
        colour = np.array([28.0, 92, 150]) + waves[..., None] + 5 * grain
    else:
        row = (y // 14).astype(int)
        mortar = (y % 14 < 2) | ((x + (row % 2) * 14) % 28 < 2)
        colour = np.where(mortar[..., None], (198.0, 193, 184), (150.0, 72, 52)) + 8 * grain
    shade = 6 * _smooth_noise(rng, height, width, 48)[..., None]
    return np.clip(colour + shade, 0, 255).astype(np.float32)


def _smooth_noise(rng: np.random.Generator, height: int, width: int, scale: int) -> Float[np.ndarray, "height width"]:
    coarse = rng.normal(size=(height // scale + 2, width // scale + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _draw_thing(
    rng: np.random.Generator,
    thing: Thing,
    place: Place,
    image: Float[np.ndarray, "height width 3"],
    mask: UInt8[np.ndarray, "height width"],
) -> None:
    """Paint an object into the image and the mask, within its bounding box."""
    y, x, r = place
    height, width = mask.shape
    reach = int(1.25 * r) + 2
    top, left = max(0, int(y) - reach), max(0, int(x) - reach)
    bottom, right = min(height, int(y) + reach), min(width, int(x) + reach)
    box = np.s_[top:bottom, left:right]
    turn = rng.uniform(-0.45, 0.45)
    opacity = _outline(thing.kind, turn, (y - top, x - left, r), bottom - top, right - left)
    rows, columns = np.mgrid[top:bottom, left:right].astype(np.float32)
    u = (columns - x) * math.cos(turn) + (rows - y) * math.sin(turn)
    v = -(columns - x) * math.sin(turn) + (rows - y) * math.cos(turn)
    surface = _texture(rng, thing, u, v)
    motif = _motif(rng, thing.kind, u, v)
    surface = np.where(motif[..., None], np.array(KINDS[thing.kind]) * rng.uniform(0.92, 1.06), surface)
    image[box] = image[box] * (1 - opacity[..., None]) + surface * opacity[..., None]
    mask[box][opacity > 0.5] = CLASSES.index(thing.kind)


def _outline(kind: str, turn: float, place: Place, height: int, width: int) -> Float[np.ndarray, "height width"]:
    """Return the opacity of the kind's silhouette, from 0 outside to 1 inside."""
    y, x, r = place
    canvas = Image.new("L", (width * _OVERSAMPLE, height * _OVERSAMPLE))
    pen = ImageDraw.Draw(canvas)
    across, down = np.array([math.cos(turn), math.sin(turn)]), np.array([-math.sin(turn), math.cos(turn)])

    def polygon(points: Iterable[tuple[float | int, float | int]]) -> None:
        centre = np.array([x, y])
        corners = [tuple((centre + r * (p * across + q * down)) * _OVERSAMPLE) for p, q in points]
        pen.polygon(corners, fill=255)

    circle = [(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 48, endpoint=False)]
    if kind == "fish":
        polygon([(p * 0.85 - 0.15, q * 0.62) for p, q in circle])
        polygon([(0.5, 0), (1.1, -0.6), (1.1, 0.6)])
    elif kind == "leaf":
        polygon([(math.copysign(abs(p) ** 1.6, p) * 0.72, q * 1.1) for p, q in circle])
    elif kind == "ball":
        polygon([(p * 0.95, q * 0.95) for p, q in circle])
    elif kind == "house":
        polygon([(-0.8, 0.9), (-0.8, -0.2), (0, -1), (0.8, -0.2), (0.8, 0.9)])
    elif kind == "snail":
        polygon([(p * 0.82, q * 0.82 - 0.12) for p, q in circle])
        polygon([(-1.1, 0.8), (-0.8, 0.4), (0.9, 0.4), (1.1, 0.8)])
    elif kind == "basket":
        polygon([(-1, -0.6), (1, -0.6), (0.75, 0.8), (-0.75, 0.8)])
    elif kind == "star":
        angles = np.arange(10) * math.pi / 5 - math.pi / 2
        polygon([(s * math.cos(a), s * math.sin(a)) for s, a in zip([1.15, 0.62] * 5, angles, strict=True)])
    else:  # kite
        polygon([(0, -1.05), (0.8, -0.15), (0, 1.1), (-0.8, -0.15)])
    small = canvas.resize((width, height), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


def _texture(
    rng: np.random.Generator, thing: Thing, u: Float[np.ndarray, "height width"], v: Float[np.ndarray, "height width"]
) -> Float[np.ndarray, "height width 3"]:
    """Return the object's colours in its own frame (u, v): its colour, modulated by its texture."""
    colour = np.array(COLOURS[thing.colour], dtype=np.float32) * rng.uniform(0.9, 1.06) + rng.normal(size=3) * 5
    other = colour * 0.5 if colour.mean() > 90 else colour + 95
    period = rng.uniform(10, 14)
    if thing.texture == "plain":
        return np.broadcast_to(colour, (*u.shape, 3))
    if thing.texture == "striped":
        marked = u % period < 0.42 * period
    elif thing.texture == "dotted":
        marked = (u % period - period / 2) ** 2 + (v % period - period / 2) ** 2 < (0.31 * period) ** 2
    else:
        marked = ((u // (0.65 * period)) + (v // (0.65 * period))) % 2 == 0
    return np.where(marked[..., None], other, colour)


def _motif(
    rng: np.random.Generator, kind: str, u: Float[np.ndarray, "height width"], v: Float[np.ndarray, "height width"]
) -> Bool[np.ndarray, "height width"]:
    """Return a mask of the lines of the kind's motif in the object's own frame (u, v). They repeat about every 18 pixels."""
    p = rng.uniform(15, 20)
    line = 0.16 * p
    if kind == "fish":  # scales: rows of arcs, every other row shifted by half
        row = np.floor(v / (p / 2))
        arc = np.hypot((u + (row % 2) * p / 2) % p - p / 2, v - row * p / 2)
        return np.abs(arc - 0.46 * p) < line * 0.5
    if kind == "leaf":  # herringbone veins off a midrib
        return ((v - np.abs(u)) % p < line * 1.3) | (np.abs(u) < line)
    if kind == "ball":  # rings
        return np.abs(np.hypot(u % p - p / 2, v % p - p / 2) - 0.38 * p) < line * 0.55
    if kind == "house":  # windows
        return (u % p < 0.55 * p) & (v % p < 0.6 * p) & ((u % p) % (0.3 * p) > 0.05 * p)
    if kind == "snail":  # one spiral
        return (np.hypot(u, v) + np.arctan2(v, u) * p / (2 * math.pi)) % p < line * 1.9
    if kind == "basket":  # weave: short bars that turn from cell to cell
        turned = (u // p + v // p) % 2 == 0
        return np.where(turned, u, v) % (p / 2) < line * 1.1
    if kind == "star":  # sparkles: plus signs on a grid
        a, b = np.abs(u % p - p / 2), np.abs(v % p - p / 2)
        return np.minimum(a, b) + 0.25 * np.maximum(a, b) < line * 0.9
    return np.abs((v + np.abs(u % p - p / 2)) % (0.75 * p)) < line * 1.2  # kite: zigzag
