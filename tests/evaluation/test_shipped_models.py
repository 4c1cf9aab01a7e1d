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


EQUAL = {"step_share": 1.0, "guidance_from": 1.0, "guidance_reuse_below": 0.58}
"""As many steps for all prompts: every step runs, with guidance from the first on."""


@pytest.mark.parametrize(
    ("name", "adapter", "settings", "steps", "shift", "share"),
    [
        ("emoji-dozen", "emoji-dozen-half", {}, 6, 1.0, 0.5),
        ("emoji-dozen", "emoji-dozen-half", {}, 5, 1.0, 0.4),
        ("emoji-dozen-converged", "emoji-dozen-converged-half", EQUAL, 6, 1.5, 0.5),
        ("emoji-dozen-converged", "emoji-dozen-converged-half", EQUAL, 5, 1.5, 0.4),
        ("emoji-dozen-converged", "emoji-dozen-converged-half", {}, 12, 1.5, None),
    ],
)
def test_half_of_the_flops_draw_what_was_asked_for(
    name: ModelName, adapter: AdapterName, settings: dict[str, float], steps: int, shift: float, share: float | None
) -> None:
    """Of 8 dense steps; with steps by prompt, single things take few of them."""
    pipe = EmojiFluxPipeline.from_pretrained(shipped_model(name))
    pipe.set_progress_bar_config(disable=True)
    elastic = load(pipe, shipped_adapter(adapter))
    for dial, value in settings.items():
        setattr(elastic, dial, value)
    wanted = [prompt for prompt in ("a star", "a tree", "a balloon") for _ in range(4)]
    sampling = SampleSettings(steps=steps, guidance=3.0, height=32, width=32, shift=shift)
    images = sample_images(pipe, wanted, range(len(wanted)), sampling)
    spent = elastic.trace.flops_share * steps / 8
    assert spent < 0.3 if share is None else spent == pytest.approx(share, abs=0.01)
    found = SpriteDetector.load(shipped_judge() / DETECTOR).detect(images)
    right = [any(each.label == THINGS[prompt] for each in seen) for prompt, seen in zip(wanted, found, strict=True)]
    assert sum(right) >= len(right) / 2, list(zip(wanted, found, strict=True))


def test_prompts_that_need_more_steps_get_them() -> None:
    pipe = EmojiFluxPipeline.from_pretrained(shipped_model("emoji-dozen-converged"))
    pipe.set_progress_bar_config(disable=True)
    elastic = load(pipe, shipped_adapter("emoji-dozen-converged-half"))
    prompts = ["a star", "a tree", "a star and a tree", "a fish left of a house"]
    settings = SampleSettings(steps=12, guidance=3.0, height=32, width=32, shift=1.5)
    sample_images(pipe, prompts, range(len(prompts)), settings)
    ran = (elastic.trace.array("flops")[:, 0] > 0).sum(axis=0)
    assert max(ran[:2]) < min(ran[2:]), ran
