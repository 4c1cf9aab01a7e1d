"""What the studies of `elastic-dit study` look into: a tiny pipeline, its adapter, and real scenes."""

from pathlib import Path
from typing import NamedTuple

from elastic_dit.evaluation.held_out import HeldOut, read_held_out
from elastic_dit.models.loading import load_pipeline
from elastic_dit.training.data.prepare import prepare
from elastic_dit.training.families.base import Family, family_of
from emoji import EVERYDAY_SPRITES, save_pair

SPRITES = Path(__file__).parent / "data" / "sprites"
SIZE = 16
"""Side of the images in pixels."""


class Subject(NamedTuple):
    family: Family
    adapter: str
    scenes: list[HeldOut]


def scenes_folder(folder: Path) -> Path:
    """Held-out scenes of all six tasks."""
    prepare(folder, SPRITES, size=SIZE, scenes=60, variants=1, concepts=EVERYDAY_SPRITES)
    return folder / "val"


def subject(folder: Path) -> Subject:
    """Two scenes a task: three in a quarter."""
    model, adapter = save_pair(folder)
    scenes = read_held_out([str(scenes_folder(folder / "data"))], per_task=2)
    return Subject(family_of(load_pipeline(model)), str(adapter), scenes)
