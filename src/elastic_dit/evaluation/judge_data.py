"""Scenes to train a judge on: many repainted things, and every pairing, also those that no generator is shown."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from elastic_dit.evaluation.scene_eval import Prompt
from elastic_dit.evaluation.variants import Progress
from elastic_dit.training.data.compose import Pool, compose_scene, compose_single
from elastic_dit.training.data.scenes import Scene, caption, render
from elastic_dit.training.data.sources import read_scenes
from elastic_dit.training.data.sprites import EVERYDAY, Sprites

SIZE = 64
"""Side of the images in pixels."""
TASKS = {
    "single_object": 0.1,
    "two_object": 0.1,
    "counting": 0.1,
    "colors": 0.15,
    "position": 0.1,
    "color_attr": 0.45,
}
"""Share of each task: a thing in eight paints and three styles must be seen often to be known in all of them, also when
it is small, as two things in one image are."""
RESERVED = 0.25
"""Share of the scenes whose pairing is one that generators are not trained on; a judge must know it all the same."""


class Pictures(NamedTuple):
    """Images, what they were made from, and what a person might say of them."""

    images: list[Image.Image]
    captions: list[str]
    scenes: list[Scene]

    @property
    def prompts(self) -> list[Prompt]:
        """What the images are the right answers to."""
        return [Prompt(caption, scene, 0) for caption, scene in zip(self.captions, self.scenes, strict=True)]


def compose_pictures(
    sprites: Sprites, count: int, seed: int = 0, progress: Progress = lambda label, done, total: None
) -> Pictures:
    """Draw scenes of the everyday things.

    Args:
        sprites: pictures of things, in every style.
        count: scenes.
        seed: of every random choice.
        progress: see `Progress`.
    """
    rng = random.Random(f"judge/{seed}")
    known = everyday(sprites)
    concepts = list({sprite.concept.code: sprite.concept for sprite in known.values()}.values())
    styles = tuple(sorted({style for _, style in known}))
    pools = [Pool(known, styles, concepts, reserved=reserved) for reserved in (False, True)]
    singles = list(known.values())
    made = Pictures([], [], [])
    for number in range(count):
        task = rng.choices(list(TASKS), list(TASKS.values()))[0]
        if task == "single_object":
            scene = compose_single(rng.choice(singles), known, rng)
        else:
            scene = compose_scene(pools[task != "counting" and rng.random() < RESERVED], rng, task)
        made.images.append(render(scene, known, SIZE))
        made.captions.append(caption(scene, rng))
        made.scenes.append(scene)
        progress("scenes", number + 1, count)
    return made


def everyday(sprites: Sprites) -> Sprites:
    """Those of the everyday things."""
    return {key: sprite for key, sprite in sprites.items() if sprite.concept.label in EVERYDAY}


def read_pictures(folders: Sequence[str]) -> Pictures:
    """Those of several folders that `data prepare` wrote."""
    samples = [sample for folder in folders for sample in read_scenes(folder)]
    return Pictures(*(list(part) for part in zip(*samples, strict=True)))
