"""Scenes that a judge is trained on: every pairing, much paint, the same for the same seed."""

from pathlib import Path

import numpy as np
import pytest

from elastic_dit.errors import DataError
from elastic_dit.evaluation.judge_data import TASKS, Pictures, compose_pictures, read_pictures
from elastic_dit.training.data.prepare import prepare
from elastic_dit.training.data.sprites import EVERYDAY, Sprites, read_sprites
from emoji import EVERYDAY_SPRITES

SPRITES = Path(__file__).parents[1] / "data" / "sprites"


@pytest.fixture(scope="module")
def sprites() -> Sprites:
    return read_sprites(SPRITES)


@pytest.fixture(scope="module")
def made(sprites: Sprites) -> Pictures:
    return compose_pictures(sprites, 150)


def test_every_task_and_every_pairing(made: Pictures) -> None:
    assert {scene.tag for scene in made.scenes} == set(TASKS)
    assert {scene.novelty for scene in made.scenes} == {"seen", "composition"}
    assert {item.label for scene in made.scenes for item in scene.objects} <= EVERYDAY
    painted = [item for scene in made.scenes for item in scene.objects if item.repainted]
    assert len(painted) > 50
    assert all(image.size == (64, 64) for image in made.images)
    assert all(
        scene.objects[0].names[0] in text or scene.objects[0].label in text or scene.count > 1
        for text, scene in zip(made.captions, made.scenes, strict=True)
    )


def test_a_seed_is_a_set(made: Pictures, sprites: Sprites) -> None:
    again, other = compose_pictures(sprites, 20), compose_pictures(sprites, 20, seed=1)
    assert again.scenes == made.scenes[:20] and again.captions == made.captions[:20]
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(again.images, made.images, strict=False))
    assert other.scenes != again.scenes


def test_pictures_of_folders(tmp_path: Path) -> None:
    counts = prepare(tmp_path, SPRITES, scenes=8, concepts=EVERYDAY_SPRITES)
    read = read_pictures([str(tmp_path / "val"), str(tmp_path / "test")])
    assert len(read.images) == len(read.captions) == len(read.scenes) == counts["val"] + counts["test"]
    with pytest.raises(DataError, match="none"):
        read_pictures([str(tmp_path / "none")])
