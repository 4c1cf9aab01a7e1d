"""Sprites: cut-out pictures with a name, how they are split, and a folder to keep them in."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from elastic_dit.errors import DataError
from elastic_dit.training.data.packages import notice

INDEX = "concepts.json"
"""The file that makes a folder a folder of sprites."""

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

COMMON = frozenset(
    name.strip()
    for name in """
    airplane, alarm clock, alien, anchor, angry face, apple, avocado, baby chick, backpack, ball, balloon,
    banana, basketball, bat, bear, bee, beer, bell, bicycle, bike, bird, blue heart, boat, bomb, book, bread,
    burger, bus, butterfly, cactus, cake, camel, camera, candy, car, carrot, castle, cat, chair, cheese,
    cherries, cherry blossom, chicken, chocolate bar, clock, cloud, clown face, coconut, coffee, computer,
    cookie, cool face, corn, cow, crab, crown, crying face, dart, diamond, dice, dog, dolphin, donut,
    doughnut, dragon, dress, droplet, drum, duck, egg, eggplant, elephant, evergreen tree,
    face with tears of joy, fire, fire engine, fish, flower, football, fork, four leaf clover, fox,
    french fries, frog, ghost, gift, giraffe, glasses, goat, gorilla, grapes, green apple, green heart,
    guitar, hammer, happy face, hat, heart, heart eyes face, hedgehog, helicopter, hippopotamus, honey pot,
    horse, hot beverage, hot dog, house, ice cream, jack-o-lantern, jeans, kangaroo, key, kiwi, knife, koala,
    ladybug, laptop, leaf, lemon, light bulb, lighthouse, lightning, lion, lobster, lollipop, maple leaf,
    medal, milk, monkey, moon, mountain, mouse, mushroom, octopus, orange, otter, owl, palm tree, pancakes,
    panda, peach, pear, pencil, penguin, phone, pig, pile of poo, pineapple, pizza, poop, popcorn, pumpkin,
    rabbit, rainbow, red apple, red heart, rhinoceros, robot, rocket, rooster, rose, sailboat, sandwich,
    school bus, scissors, scorpion, shark, sheep, shoe, skull, sleeping face, sloth, smiling face, snail,
    snake, snow-capped mountain, snowflake, snowman, soccer ball, spider, spoon, star, strawberry, sun,
    sunflower, sushi, t-shirt, taco, tangerine, taxi, tea, teddy bear, television, tent, tiger, tomato,
    tractor, train, tree, trophy, truck, trumpet, tulip, turtle, umbrella, unicorn, volcano, watermelon,
    whale, wine glass, winking face, wolf, yellow heart, zebra
    """.split(",")
)
"""Words anyone tries first: always in training, so that held-out concepts are the rarer ones."""

EVERYDAY = frozenset(
    label.strip()
    for label in """
    angry face, automobile, balloon, banana, basketball, birthday cake, butterfly, cat face, crescent moon,
    crown, deciduous tree, dog face, doughnut, fire, fish, fox, frog, ghost, grinning face, hamburger,
    honeybee, house, lemon, mushroom, octopus, panda, penguin, pig face, pizza, rainbow, red apple, red heart,
    rocket, smiling face with heart-eyes, smiling face with sunglasses, spouting whale, star, strawberry,
    sunflower, tulip, watermelon, wrapped gift
    """.split(",")
)
"""Labels of the 42 concepts that the small model is trained on: few enough to be learned on two CPU cores."""


@dataclass(frozen=True)
class Concept:
    """One thing that can be drawn, in any style."""

    code: str
    """Code points in lower-case hex joined by '-', without the presentation selector fe0f."""
    label: str
    group: str
    names: tuple[str, ...]
    """What people call it, the label among them; the first is the shortest."""
    tags: tuple[str, ...]
    """Loosely related words."""


@dataclass(frozen=True)
class Sprite:
    """A concept drawn in one style."""

    concept: Concept
    style: str
    image: Image.Image
    """RGBA, trimmed to what is visible."""

    @cached_property
    def mean_rgb(self) -> tuple[float, float, float]:
        """Average visible colour, 0..255, so that a background can be chosen that shows it."""
        pixels = np.asarray(self.image, dtype=np.float32).reshape(-1, 4)  # (H*W, 4)
        red, green, blue = np.average(pixels[:, :3], axis=0, weights=pixels[:, 3] + 1e-6)
        return float(red), float(green), float(blue)


Sprites = Mapping[tuple[str, str], Sprite]
"""(code, style) -> sprite."""


def share(*keys: str) -> float:
    """A number in [0, 1) that depends on nothing but the keys: the same on every machine."""
    digest = hashlib.sha256("/".join(keys).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(concept: Concept, seed: int = 0) -> Split:
    """'train' (about 90%), 'val' (4%) or 'test' (6%).

    The short name decides, so that 'dog' and 'dog face' stay together.
    """
    name = concept.names[0].lower()
    position = share("split", str(seed), name)
    if name in COMMON or position >= 0.10:
        return "train"
    return "test" if position < 0.06 else "val"


def save_sprites(sprites: Sprites, folder: Path) -> None:
    """Write `folder`/{style}/{code}.webp (lossless), the index and the NOTICE.

    A few megabytes, enough to prepare the same data on a machine that reaches no registry.
    """
    concepts = {sprite.concept.code: sprite.concept for sprite in sprites.values()}
    for (code, style), sprite in sprites.items():
        path = folder / style / f"{code}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        sprite.image.save(path, lossless=True, exact=True, quality=80, method=4)
    rows = [json.dumps(asdict(concept), ensure_ascii=False) for concept in concepts.values()]
    (folder / "NOTICE.md").write_text(notice(), encoding="utf-8")
    (folder / INDEX).write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")


def read_sprites(folder: Path) -> dict[tuple[str, str], Sprite]:
    """The inverse of `save_sprites`."""
    try:
        rows = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        concepts = [Concept(**{**row, "names": tuple(row["names"]), "tags": tuple(row["tags"])}) for row in rows]
        styles = sorted(path.name for path in folder.iterdir() if path.is_dir())
        return {
            (concept.code, style): Sprite(concept, style, _open(folder / style / f"{concept.code}.webp"))
            for concept in concepts
            for style in styles
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"cannot read the sprites in {folder} ({error}); expected {INDEX} and one webp for "
            "each concept in each style folder, as save_sprites writes them. Save them again."
        ) from error


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGBA")
