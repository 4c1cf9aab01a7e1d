"""Which things look painted as they are."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from elastic_dit.evaluation.natural_colors import natural_colors
from elastic_dit.training.data.scenes import COLORS, TINTS, repaint
from elastic_dit.training.data.sprites import Concept, Sprite, read_sprites

SPRITES = Path(__file__).parents[1] / "data" / "sprites"
CONCEPT = Concept("0", "ball", "objects", ("ball",), ())


def ball(color: tuple[int, int, int]) -> Image.Image:
    """A disc with a darker half."""
    image = Image.new("RGBA", (96, 96))
    draw = ImageDraw.Draw(image)
    draw.ellipse((0, 0, 95, 95), fill=(*color, 255))
    draw.chord((0, 0, 95, 95), 0, 180, fill=(*(channel * 4 // 5 for channel in color), 255))
    return image


def colors_of(image: Image.Image) -> dict[tuple[str, str], str]:
    return natural_colors({("0", "3d"): Sprite(CONCEPT, "3d", image)})


@pytest.mark.parametrize("color", TINTS)
def test_a_painted_thing_is_of_its_paint(color: str) -> None:
    assert colors_of(repaint(ball((90, 140, 200)), color)) == {("ball", "3d"): color}


@pytest.mark.parametrize("color", ["white", "black", "gray"])
def test_a_thing_without_hue_is_like_no_paint(color: str) -> None:
    assert colors_of(ball(COLORS[color])) == {}


def test_between_two_paints_is_neither() -> None:
    red, yellow = COLORS["red"], COLORS["yellow"]
    assert colors_of(ball((red[0], (red[1] + yellow[1]) // 2, red[2]))) == {}  # no paint halfway: orange is far off


def test_real_sprites() -> None:
    found = natural_colors(read_sprites(SPRITES))
    assert found["balloon", "twemoji"] == found["red heart", "noto"] == "red"
    assert not {label for label, _ in found} & {"dog face", "school"}
