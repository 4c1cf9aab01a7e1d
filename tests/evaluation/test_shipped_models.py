"""What the dense models that ship can draw, by the detector that ships."""

import pytest

from elastic_dit import load
from elastic_dit.evaluation.sampling import SampleSettings, sample_images
from elastic_dit.evaluation.sprite_detector import DETECTOR, SpriteDetector
from elastic_dit.models import EmojiFluxPipeline, shipped_adapter, shipped_judge, shipped_model
from elastic_dit.models.weights import AdapterName, ModelName

THINGS = {"a star": "star", "a red apple": "red apple", "a tree": "deciduous tree", "a balloon": "balloon"}


@pytest.mark.parametrize(
    ("name", "size", "prompts"),
    [
        ("emoji-flux", 64, ["a star", "a red apple"]),
        ("emoji-dozen", 32, ["a star", "a tree", "a balloon"]),
        ("emoji-dozen-converged", 32, ["a star", "a tree", "a balloon"]),
    ],
)
def test_one_thing_is_what_was_asked_for(name: ModelName, size: int, prompts: list[str]) -> None:
    pipe = EmojiFluxPipeline.from_pretrained(shipped_model(name))
    pipe.set_progress_bar_config(disable=True)
    wanted = [prompt for prompt in prompts for _ in range(4)]
    settings = SampleSettings(steps=12, guidance=3.0, height=size, width=size)
    images = sample_images(pipe, wanted, range(len(wanted)), settings)
    found = SpriteDetector.load(shipped_judge() / DETECTOR).detect(images)
    right = [any(each.label == THINGS[prompt] for each in seen) for prompt, seen in zip(wanted, found, strict=True)]
    assert sum(right) >= len(right) / 2, list(zip(wanted, found, strict=True))


def test_one_checkpoint_meets_every_budget() -> None:
    pipe = EmojiFluxPipeline.from_pretrained(shipped_model("emoji-dozen"))
    pipe.set_progress_bar_config(disable=True)
    elastic = load(pipe, shipped_adapter("emoji-dozen-budgets"))
    settings = SampleSettings(steps=8, guidance=1.0, height=32, width=32)
    for budget in (0.3, 0.4, 0.5, 0.65, 0.8, 1.0):
        elastic.budget = budget
        sample_images(pipe, ["a star"], [0], settings)
        assert elastic.trace.flops_share == pytest.approx(budget, rel=0.01 if budget > 0.3 else 0.03)


HALVES: dict[ModelName, tuple[AdapterName, float]] = {
    "emoji-dozen": ("emoji-dozen-half", 1.0),
    "emoji-dozen-converged": ("emoji-dozen-converged-half", 1.5),
}
"""Which adapter, and the shift of the noise levels it is made for."""


@pytest.mark.parametrize(("steps", "share"), [(6, 0.5), (5, 0.4)])
@pytest.mark.parametrize("name", HALVES)
def test_half_of_the_flops_draw_what_was_asked_for(name: ModelName, steps: int, share: float) -> None:
    """Of 8 dense steps."""
    pipe = EmojiFluxPipeline.from_pretrained(shipped_model(name))
    pipe.set_progress_bar_config(disable=True)
    adapter, shift = HALVES[name]
    elastic = load(pipe, shipped_adapter(adapter))
    wanted = [prompt for prompt in ("a star", "a tree", "a balloon") for _ in range(4)]
    settings = SampleSettings(steps=steps, guidance=3.0, height=32, width=32, shift=shift)
    images = sample_images(pipe, wanted, range(len(wanted)), settings)
    assert elastic.trace.flops_share * steps / 8 == pytest.approx(share, abs=0.01)
    found = SpriteDetector.load(shipped_judge() / DETECTOR).detect(images)
    right = [any(each.label == THINGS[prompt] for each in seen) for prompt, seen in zip(wanted, found, strict=True)]
    assert sum(right) >= len(right) / 2, list(zip(wanted, found, strict=True))
