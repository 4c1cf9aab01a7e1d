"""Scores of scenes are kept as they are drawn, gone on from, and say what compute follows."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image

from elastic_dit.errors import CheckpointError
from elastic_dit.evaluation.sampling import SampleSettings
from elastic_dit.evaluation.scene_eval import Found, Prompt
from elastic_dit.evaluation.scene_scores import SceneScores, by_task, followed
from elastic_dit.training.data.scenes import Background, Scene, SceneObject
from studies import Subject

SETTINGS = SampleSettings(steps=1, guidance=1.0, height=16, width=16)


def thing(label: str) -> SceneObject:
    return SceneObject("0", label, (label,), (), "3d", None, False, (0.0, 0.0, 0.5, 0.5))


def prompt(label: str, objects: int = 1) -> Prompt:
    scene = Scene("counting", "3d", (thing(label),) * objects, Background("white"), objects, None)
    return Prompt(f"{objects} {label}", scene, seed=0)


PROMPTS = [prompt("dog"), prompt("cat"), prompt("dog", 2)]


class OneDog:
    """Sees one dog in every image, and gives up after so many."""

    def __init__(self, until: int) -> None:
        self.seen, self.until = 0, until

    def detect(self, images: Sequence[Image.Image]) -> list[list[Found]]:
        if self.seen + len(images) > self.until:
            raise KeyboardInterrupt
        self.seen += len(images)
        return [[Found("dog", None, "3d", (0.0, 0.0, 1.0, 1.0), 1.0)] for _ in images]


def test_what_was_drawn_is_not_drawn_again(studied: Subject, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "scores.safetensors"

    def scores(until: int, images: int, name: str = "every_2") -> tuple[torch.Tensor, int]:
        detector = OneDog(until)
        kept = SceneScores(file, PROMPTS, SETTINGS, "this model")
        return kept(name, studied.family.pipeline, cast(Any, detector), images=images, batch=2), detector.seen

    with pytest.raises(KeyboardInterrupt):
        scores(until=5, images=2)
    found, drawn = scores(until=99, images=2)
    assert found.tolist() == [1, 0, 0] and drawn == 3
    assert scores(until=0, images=1)[0].tolist() == [1, 0, 0]
    assert scores(until=99, images=1, name="every_3")[1] == 3
    with pytest.raises(CheckpointError, match="other prompts, settings or models"):
        SceneScores(file, PROMPTS[:2], SETTINGS, "this model")
    with pytest.raises(CheckpointError, match="other prompts, settings or models"):
        SceneScores(file, PROMPTS, SETTINGS, "another model")


def test_each_image_has_a_seed_of_its_own(studied: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def sample(pipe: Any, captions: list[str], drawn: Sequence[int], settings: SampleSettings) -> list[Image.Image]:
        seeds.extend(drawn)
        return [Image.new("RGB", (16, 16))] * len(captions)

    monkeypatch.setattr("elastic_dit.evaluation.scene_scores.sample_images", sample)
    kept = SceneScores(tmp_path / "scores.safetensors", PROMPTS, SETTINGS, "this model")
    kept("every_2", studied.family.pipeline, cast(Any, OneDog(99)), images=2, batch=2)
    assert seeds == [100_000, 100_001, 100_002, 200_000, 200_001, 200_002]


def test_what_compute_follows() -> None:
    prompts = [prompt("dog", objects) for objects in (1, 2, 3, 4)]
    scores = torch.tensor([[1.0, 1.0], [1.0, 0.8], [1.0, 0.4], [0.0, 0.0]])
    found = followed(torch.tensor([1.0, 2.0, 3.0, 1.0]), scores, prompts)
    assert found["gain"][0] == pytest.approx(1)
    assert found["failure"][0] < 0
    assert found["scene_difficulty"][0] == pytest.approx(found["difficulty_and_gain"][0])
    assert all(low <= value <= high for value, low, high in found.values())


def test_means_by_task() -> None:
    one, two = PROMPTS[0], PROMPTS[1]._replace(scene=replace(PROMPTS[1].scene, tag="colors"))
    scores = torch.tensor([[1.0, 0.5], [0.5, 0.0], [0.0, 0.5]])
    assert by_task(scores, [one, two, one]) == {"counting": [0.5, 0.5], "colors": [0.5, 0.0]}
