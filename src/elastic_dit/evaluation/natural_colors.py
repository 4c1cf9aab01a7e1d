"""Things that are of a paint's colour as they are: a yellow star is a star."""

from collections.abc import Mapping

import numpy as np
from PIL import Image

from elastic_dit.training.data.scenes import TINTS, repaint
from elastic_dit.training.data.sprites import Sprite, Sprites

SIDE = 32
"""Longer side of the pictures that are compared, in pixels: as large as a thing among two is drawn."""
HALFWAY = 0.5

NaturalColors = Mapping[tuple[str, str], str]
"""(label, style) -> the paint that the thing is like as it is; most things are like none."""


def natural_colors(sprites: Sprites) -> dict[tuple[str, str], str]:
    """Which things look painted as they are.

    A thing does if it is less than halfway from its picture in that paint to the nearest in another paint, so that no
    other paint is as near. Distances are in RGB, pixel by pixel, and averaged over what is visible.
    """
    found: dict[tuple[str, str], str] = {}
    for sprite in sprites.values():
        small = _reduced(sprite)
        pictures = {color: _pixels(repaint(small, color)) for color in TINTS}
        own, visible = _pixels(small), _pixels(small)[..., 3]

        def apart(one: np.ndarray, other: np.ndarray, weights: np.ndarray = visible) -> float:
            return float(np.average(np.linalg.norm(one[..., :3] - other[..., :3], axis=-1), weights=weights))

        for color, painted in pictures.items():
            others = [apart(painted, other) for name, other in pictures.items() if name != color]
            if apart(painted, own) < HALFWAY * min(others):
                found[sprite.concept.label, sprite.style] = color
    return found


def _reduced(sprite: Sprite) -> Image.Image:
    scale = SIDE / max(sprite.image.size)
    size = (max(1, round(sprite.image.width * scale)), max(1, round(sprite.image.height * scale)))
    return sprite.image.resize(size, Image.Resampling.LANCZOS)


def _pixels(image: Image.Image) -> np.ndarray:
    """RGBA (H, W, 4) in 0..255."""
    return np.asarray(image, dtype=np.float32)
