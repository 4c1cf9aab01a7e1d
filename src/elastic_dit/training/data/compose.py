"""Invent scenes: which concepts, how many, where, in what colour, on what background."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from elastic_dit.errors import DataError
from elastic_dit.training.data.english import is_countable
from elastic_dit.training.data.scenes import (
    COLORS,
    RELATIONS,
    TEXTURES,
    TINTS,
    Background,
    Scene,
    SceneObject,
)
from elastic_dit.training.data.sprites import Concept, Sprite, Sprites, share

RESERVED = 0.04
"""Share of all pairings (two concepts, or a concept and a paint) that only the test set shows."""

TAG_WEIGHTS = {
    "two_object": 0.25,
    "counting": 0.2,
    "colors": 0.15,
    "position": 0.25,
    "color_attr": 0.15,
}

_PALE = ("white", "beige", "light blue", "light green", "gray")
_CONTRAST = 70.0
"""Least distance in RGB between a background and a sprite's mean colour."""

_TRIES = 10_000

Cell = tuple[float, float, float, float]
"""Left, top, width, height of the room for one sprite, as fractions of the frame."""


def is_reserved(*keys: str) -> bool:
    """Whether a pairing of names and colours is kept for the test set, in whatever order."""
    return share("pairing", *sorted(key.lower() for key in keys)) < RESERVED


@dataclass(frozen=True)
class Pool:
    """The concepts one split may use."""

    sprites: Sprites
    styles: tuple[str, ...]
    common: Sequence[Concept]
    """Concepts seen in training."""
    special: Sequence[Concept] = ()
    """Held-out concepts; when given, each scene shows at least one of them."""
    reserved: bool = False
    """Draw reserved pairings only (else: never)."""

    @property
    def novelty(self) -> str:
        """What is new in these scenes against training."""
        return "concept" if self.special else "composition" if self.reserved else "seen"


def compose_single(
    sprite: Sprite, sprites: Sprites, rng: random.Random, novelty: str = "seen", plain: bool = False
) -> Scene:
    """One sprite, centred, filling 75-95% of the frame, mostly on a plain background."""
    room = rng.uniform(0.75, 0.95)
    spare = (1 - room) / 2
    cell = (spare * rng.uniform(0.6, 1.4), spare * rng.uniform(0.6, 1.4), room, room)
    item = _place(sprite, cell, None)
    white = plain or rng.random() < 0.4
    background = _background([sprite], [], rng, textured=0.15, white=white)
    return Scene("single_object", sprite.style, (item,), background, novelty=novelty)


def compose_scene(pool: Pool, rng: random.Random, tag: str | None = None) -> Scene:
    """A scene for one of GenEval's tasks, with concepts of the pool."""
    if tag is None:
        tags = list(TAG_WEIGHTS)
        if pool.reserved:
            tags.remove("counting")  # a single concept is no pairing
        tag = rng.choices(tags, [TAG_WEIGHTS[t] for t in tags])[0]
    style = rng.choice(pool.styles)
    relation: str | None = None
    paints: Sequence[str | None]
    if tag == "counting":
        concepts = [_draw(pool, rng, lambda c: is_countable(c.names[0]))]
        paints, numbers = [None], [rng.randint(2, 4)]
    elif tag == "colors":
        concepts = [_draw(pool, rng, lambda c: bool(_list_paints(c, reserved=pool.reserved)))]
        paints = [rng.choice(_list_paints(concepts[0], reserved=pool.reserved))]
        numbers = [1]
    else:
        concepts = _draw_pair(pool, rng, is_paintable if tag == "color_attr" else lambda c: True)
        painted = tag == "color_attr"
        paints = _draw_paints(concepts, rng) if painted else [None, None]
        if tag == "position" or (painted and rng.random() < 0.25):
            relation = rng.choice(RELATIONS)
        many = tag == "position" and is_countable(concepts[0].names[0]) and rng.random() < 0.35
        numbers = [2 if many else 1, 1]
    cells = _layout(numbers, relation, rng)
    items: list[SceneObject] = []
    drawn = [pool.sprites[c.code, style] for c in concepts]
    for sprite, paint, number in zip(drawn, paints, numbers, strict=True):
        items += [_place(sprite, cells[len(items) + i], paint) for i in range(number)]
    background = _background(drawn, [p for p in paints if p], rng, textured=0.4, white=rng.random() < 0.25)
    return Scene(tag, style, tuple(items), background, numbers[0], relation, pool.novelty)


def _draw(pool: Pool, rng: random.Random, fits: Callable[[Concept], bool]) -> Concept:
    for _ in range(_TRIES):
        concept = rng.choice(pool.special or pool.common)
        if fits(concept):
            return concept
    raise _too_few(pool)


def _draw_pair(pool: Pool, rng: random.Random, fits: Callable[[Concept], bool]) -> list[Concept]:
    for _ in range(_TRIES):
        first, second = _draw(pool, rng, fits), rng.choice(pool.common)
        distinct = fits(second) and first.names[0] != second.names[0]
        if distinct and is_reserved(first.names[0], second.names[0]) == pool.reserved:
            return rng.sample([first, second], k=2)
    raise _too_few(pool)


def _too_few(pool: Pool) -> DataError:
    return DataError(
        f"no fitting concept or pair among {len(pool.common)} common and {len(pool.special)} "
        f"held-out concepts (novelty {pool.novelty!r}); give more sprites, or ask for 0 scenes"
    )


def _list_paints(concept: Concept, *, reserved: bool) -> list[str]:
    """The colours in which the concept may be shown: the reserved ones, or all others."""
    if not is_paintable(concept):
        return []
    return [color for color in TINTS if is_reserved(concept.names[0], color) == reserved]


def _draw_paints(concepts: Sequence[Concept], rng: random.Random) -> list[str]:
    """A different colour for each; never a reserved one, as the pair alone decides on novelty."""
    paints: list[str] = []
    for concept in concepts:
        free = [c for c in _list_paints(concept, reserved=False) if c not in paints]
        paints.append(rng.choice(free))
    return paints


def is_paintable(concept: Concept) -> bool:
    """Whether another colour is welcome: not on people, nor where the name says the colour."""
    return concept.group != "people-body" and color_of(concept) is None


def color_of(concept: Concept) -> str | None:
    """The colour its label says, if any: "red apple" is red."""
    words = concept.label.lower().split()
    return next((color for color in COLORS if color in words), None)


def _place(sprite: Sprite, cell: Cell, paint: str | None) -> SceneObject:
    """Fit the sprite into the cell, centred, keeping its shape."""
    left, top, width, height = cell
    scale = min(width / sprite.image.width, height / sprite.image.height)
    w, h = sprite.image.width * scale, sprite.image.height * scale
    x, y = left + (width - w) / 2, top + (height - h) / 2
    concept = sprite.concept
    return SceneObject(
        code=concept.code,
        label=concept.label,
        names=concept.names,
        tags=concept.tags[:6],
        style=sprite.style,
        color=paint or color_of(concept),
        repainted=paint is not None,
        box=(_within(x), _within(y), _within(x + w), _within(y + h)),
    )


def _within(edge: float) -> float:
    return round(min(1.0, max(0.0, edge)), 4)


def _layout(numbers: Sequence[int], relation: str | None, rng: random.Random) -> list[Cell]:
    """Room for each sprite, in the order of the objects, without overlap."""
    if len(numbers) == 1:
        grids = {1: [(0, 0)], 2: [(0, 0.5), (1, 0.5)], 4: [(0, 0), (1, 0), (0, 1), (1, 1)]}
        grids[3] = rng.choice(([(0.5, 0), (0, 1), (1, 1)], [(0, 0), (1, 0), (0.5, 1)]))
        if numbers[0] == 1:
            room = rng.uniform(0.6, 0.85)
            return [(rng.uniform(0.03, 0.97 - room), rng.uniform(0.03, 0.97 - room), room, room)]
        return [_jitter((0.5 * x, 0.5 * y, 0.5, 0.5), rng) for x, y in grids[numbers[0]]]
    side = relation or rng.choice(RELATIONS)
    first = 0.0 if side in ("left of", "above") else 0.5
    cells = [_jitter((first, 0.25, 0.5, 0.5), rng, slide=0.18)]
    if numbers[0] == 2:
        cells = [_jitter((first, y, 0.5, 0.5), rng) for y in (0.0, 0.5)]
    cells.append(_jitter((0.5 - first, 0.25, 0.5, 0.5), rng, slide=0.18))
    vertical = side in ("above", "below")
    return [(y, x, h, w) for x, y, w, h in cells] if vertical else cells


def _jitter(cell: Cell, rng: random.Random, slide: float = 0.0) -> Cell:
    """Shrink the cell a little, move it within its room, and slide it along the second axis."""
    left, top, width, height = cell
    room = rng.uniform(0.86, 0.96)
    x = left + width * (1 - room) * rng.random()
    y = top + height * (1 - room) * rng.random() + rng.uniform(-slide, slide)
    return x, y, width * room, height * room


def _background(
    sprites: Sequence[Sprite],
    paints: Sequence[str],
    rng: random.Random,
    *,
    textured: float,
    white: bool,
) -> Background:
    """A background on which every sprite shows."""
    shown = [COLORS[p] for p in paints] if paints else [s.mean_rgb for s in sprites]
    clear = [name for name in COLORS if all(_distance(COLORS[name], rgb) > _CONTRAST for rgb in shown)]
    if white and "white" in clear:
        return Background("white")
    # Pale grounds twice as often: they are what people ask for and what shows a subject best.
    name = rng.choice([n for n in clear for _ in range(2 if n in _PALE else 1)] or ["white"])
    texture = rng.choice(TEXTURES[1:]) if rng.random() < textured else "plain"
    angle, period = rng.choice((0.0, 45.0, 90.0, 135.0)), rng.choice((0.16, 0.2, 0.25))
    return Background(name, texture, angle, period) if texture != "plain" else Background(name)


def _distance(one: Sequence[float], two: Sequence[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, two, strict=True)) ** 0.5
