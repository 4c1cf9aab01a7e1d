"""Scenes of one to four sprites on a background: what they are, how they look, what to say of them.

A `Scene` is plain data (JSON in, JSON out). `render` and `caption` are pure functions of it, so a
scene can be drawn again at any size and described in other words. `compose.py` invents scenes.
"""

import math
import random
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from elastic_dit.errors import DataError
from elastic_dit.training.data.english import amount, with_article
from elastic_dit.training.data.sprites import Sprites

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's six tasks."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (224, 49, 49),
    "orange": (245, 132, 31),
    "yellow": (250, 204, 40),
    "green": (56, 165, 72),
    "blue": (47, 112, 224),
    "purple": (139, 72, 200),
    "pink": (246, 120, 176),
    "brown": (133, 84, 54),
    "black": (28, 28, 32),
    "white": (255, 255, 255),
    "gray": (150, 152, 158),
    "light blue": (164, 212, 246),
    "light green": (178, 226, 172),
    "beige": (240, 224, 196),
}
TINTS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
"""Colours in which an object can be repainted."""

Texture = Literal["plain", "stripes", "dots", "gradient", "checker"]
TEXTURES: tuple[Texture, ...] = ("plain", "stripes", "dots", "gradient", "checker")
TEXTURE_WORDS = {
    "stripes": "striped",
    "dots": "dotted",
    "gradient": "gradient",
    "checker": "checkered",
}

STYLE_WORDS = {
    "3d": ("3d", "3d style", "glossy 3d render", "3d render", "3d icon"),
    "noto": ("noto", "noto style", "noto emoji", "soft shaded"),
    "twemoji": ("twemoji", "twemoji style", "flat", "flat vector style"),
}
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class SceneObject:
    """One sprite in a scene."""

    code: str
    label: str
    names: tuple[str, ...]
    tags: tuple[str, ...]
    style: str
    color: str | None
    """A colour word known for sure: from the label ("red apple") or because it was repainted."""
    repainted: bool
    box: tuple[float, float, float, float]
    """Left, top, right, bottom as fractions of the frame."""


@dataclass(frozen=True)
class Background:
    """A plain or lightly textured background."""

    color: str
    texture: Texture = "plain"
    angle: float = 0.0
    """Direction of stripes or gradient, in degrees."""
    period: float = 0.2
    """Size of one repeat of the texture, as a fraction of the frame."""


@dataclass(frozen=True)
class Scene:
    """Everything one needs to draw an image and to check it."""

    tag: str
    style: str
    objects: tuple[SceneObject, ...]
    """Equal objects stand together; the first `count` are the subject."""
    background: Background
    count: int = 1
    relation: str | None = None
    """Where the subject is, as seen from the other object; one of `RELATIONS`."""
    novelty: str = "seen"
    """'seen', 'concept' (an object no training image shows) or 'composition' (a new pairing)."""

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Scene":
        """The inverse of `to_json`."""
        try:
            objects = tuple(
                SceneObject(**item | {name: tuple(item[name]) for name in ("names", "tags", "box")})
                for item in data["objects"]
            )
            background = Background(**data["background"])
            return cls(**data | {"objects": objects, "background": background})
        except (KeyError, TypeError) as error:
            raise DataError(
                f"not a scene ({error}); expected the fields that Scene.to_json writes: "
                f"{', '.join(cls.__dataclass_fields__)}"
            ) from error


def render(scene: Scene, sprites: Sprites, size: int) -> Image.Image:
    """Draw the scene as an RGB image of `size` x `size` px."""
    frame = _draw_background(scene.background, size)
    for item in scene.objects:
        sprite = sprites.get((item.code, item.style))
        if sprite is None:
            raise DataError(
                f"the scene shows {item.label!r} ({item.code}) in style {item.style!r}, which is "
                "not among the sprites given; load the sprites of the versions in dataset.json"
            )
        left, top, right, bottom = (round(edge * size) for edge in item.box)
        image = repaint(sprite.image, item.color) if item.repainted and item.color else sprite.image
        # Pillow resizes RGBA with premultiplied alpha, so no dark or light fringe appears.
        box = (max(1, right - left), max(1, bottom - top))
        image = image.resize(box, Image.Resampling.LANCZOS, reducing_gap=3.0)
        frame.alpha_composite(image, (left, top))
    return frame.convert("RGB")


def repaint(image: Image.Image, color: str) -> Image.Image:
    """The sprite in shades of one colour.

    Its lightness, moved so that the mean is 1/2, runs from black over the colour to white.
    """
    pixels = np.asarray(image, dtype=np.float32)
    alpha = pixels[..., 3:]  # (H, W, 1)
    light = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32) / 255  # (H, W)
    mean = float(np.average(light, weights=alpha[..., 0] + 1e-6))
    light = np.clip(0.5 + 0.9 * (light - mean), 0.08, 0.95)[..., None]  # (H, W, 1)
    target = np.array(COLORS[color], dtype=np.float32)
    dark, bright = 2 * light * target, target + (2 * light - 1) * (255 - target)
    shaded = np.where(light < 0.5, dark, bright)  # (H, W, 3)
    return Image.fromarray(np.concatenate([shaded, alpha], axis=-1).round().astype(np.uint8), "RGBA")


def _draw_background(background: Background, size: int) -> Image.Image:
    base = np.array(COLORS[background.color], dtype=np.float32)
    if background.texture == "plain":
        return Image.new("RGBA", (size, size), (*COLORS[background.color], 255))
    # The second shade stays close to the first: the texture must not compete with the subject.
    bright = float(base.mean()) > 170
    accent = base * 0.84 if bright else base + (255 - base) * 0.28
    wide = 4 * size  # drawn four times larger and reduced, which smooths the edges
    y, x = np.mgrid[0:wide, 0:wide].astype(np.float32) / wide
    turn = math.radians(background.angle)
    along = x * math.cos(turn) + y * math.sin(turn)
    u, v = (x / background.period) % 1, (y / background.period) % 1
    match background.texture:
        case "stripes":
            weight = ((along / background.period) % 1 < 0.5).astype(np.float32)
        case "dots":
            weight = ((u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.28**2).astype(np.float32)
        case "checker":
            weight = ((u < 0.5) != (v < 0.5)).astype(np.float32)
        case "gradient":
            weight = (along - along.min()) / (along.max() - along.min()) * 1.6
    pixels = base + (accent - base) * weight[..., None]  # (4S, 4S, 3)
    image = Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8), "RGB")
    return image.resize((size, size), Image.Resampling.BOX).convert("RGBA")


def caption(scene: Scene, rng: random.Random) -> str:
    """Say what the scene shows, as a person might: long or terse.

    Every object is named, its number and its paint are said; style and background often are.
    """
    subject = _phrase(scene.objects[0], scene.count, rng)
    others = scene.objects[scene.count :]
    if others:
        other = _phrase(others[0], len(others), rng)
        text = _pair(subject, other, scene.relation, rng)
    else:
        text = subject
    if scene.tag == "single_object" and rng.random() < 0.12:
        text = _name(scene.objects[0], rng)  # terse: "dog"
    elif rng.random() < 0.12:
        text = rng.choice(("a picture of ", "an image of ", "an emoji of ", "a drawing of ")) + text
    text = _add_background(text, scene.background, rng)
    text = _add_style(text, scene.style, rng)
    tags = scene.objects[0].tags
    if scene.tag == "single_object" and tags and rng.random() < 0.15:
        text += ", " + ", ".join(rng.sample(tags, k=min(len(tags), rng.randint(1, 2))))
    return text


def _name(item: SceneObject, rng: random.Random) -> str:
    name = item.names[0] if rng.random() < 0.6 else rng.choice(item.names)
    return f"{item.color} {name}" if item.repainted else name


def _phrase(item: SceneObject, count: int, rng: random.Random) -> str:
    name = _name(item, rng)
    if count > 1:
        return amount(count, name)
    return with_article(name) if rng.random() < 0.75 else name


def _pair(subject: str, other: str, relation: str | None, rng: random.Random) -> str:
    if relation is None:
        return f"{subject} {rng.choice(('and', 'and', 'next to', 'with'))} {other}"
    words = {
        "left of": ("left of", "to the left of", "on the left of"),
        "right of": ("right of", "to the right of", "on the right of"),
        "above": ("above", "above", "over"),
        "below": ("below", "below", "under"),
    }[relation]
    return f"{subject} {rng.choice(words)} {other}"


def _add_background(text: str, background: Background, rng: random.Random) -> str:
    plain = background.texture == "plain"
    if rng.random() > (0.3 if plain and background.color == "white" else 0.75):
        return text
    texture = "" if plain else TEXTURE_WORDS[background.texture] + " "
    color = background.color
    if plain:
        return f"{text} on {rng.choice((with_article(f'{color} background'), color))}"
    look = rng.choice((f"{color} {texture}", f"{texture}{color} ", f"{color} {texture}"))
    return f"{text} on {with_article(f'{look.strip()} background')}"


def _add_style(text: str, style: str, rng: random.Random) -> str:
    if rng.random() > 0.65:
        return text
    word = rng.choice(STYLE_WORDS[style])
    return f"{text}, {word}" if rng.random() < 0.75 else f"{word}: {text}"
