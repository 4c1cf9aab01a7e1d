import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    QwenImagePipeline,
    UniPCMultistepScheduler,
    WanPipeline,
)

from elastic_dit.errors import BackboneError, ConfigError
from elastic_dit.evaluation.sampling import SampleSettings, _guidance, sample_images, shifted
from elastic_dit.models.loading import load_pipeline
from emoji import save_pair

SHORT = SampleSettings(steps=2, height=32, width=32)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_pipeline(save_pair(tmp_path_factory.mktemp("sampling"))[0])


def test_a_seed_is_the_same_image_alone_and_in_a_batch(pipe: Any) -> None:
    both = sample_images(pipe, ["a cat", "a dog"], [3, 4], SHORT)
    alone = sample_images(pipe, ["a dog"], [4], SHORT)[0]
    assert [image.size for image in both] == [(32, 32), (32, 32)]
    assert np.abs(np.array(both[1], dtype=int) - np.array(alone, dtype=int)).max() <= 1
    assert np.array(both[0]).tobytes() != np.array(both[1]).tobytes()


def test_none_leaves_the_pipelines_default(pipe: Any) -> None:
    assert sample_images(pipe, ["a cat"], [0], SampleSettings(steps=1))[0].size == (64, 64)


def test_a_video_pipeline_is_refused_before_it_runs() -> None:
    with pytest.raises(BackboneError, match="WanPipeline is no text-to-image pipeline"):
        sample_images(WanPipeline.__new__(WanPipeline), ["a cat"], [0], SHORT)


@pytest.mark.parametrize(
    ("kind", "distilled", "expected"),
    [(FluxPipeline, True, "guidance_scale"), (QwenImagePipeline, False, "true_cfg_scale")],
)
def test_guidance_reaches_the_argument_that_counts(kind: Any, distilled: bool, expected: str) -> None:
    transformer = torch.nn.Identity()
    transformer.config = SimpleNamespace(guidance_embeds=distilled)  # type: ignore[assignment]
    given = _guidance(SimpleNamespace(transformer=transformer), inspect.signature(kind.__call__).parameters, 4.0, 2)
    assert given[expected] == 4.0
    assert ("negative_prompt" in given) == (not distilled)


@pytest.mark.parametrize(
    "plain",
    [
        FlowMatchEulerDiscreteScheduler(),
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        UniPCMultistepScheduler(use_flow_sigmas=True),
    ],
)
def test_shifted_levels(plain: Any) -> None:
    before = dict(plain.config)
    moved = shifted(plain, 2.0)
    moved.set_timesteps(sigmas=np.array([0.8, 0.5]), mu=0.7)
    np.testing.assert_allclose(moved.sigmas, [2 * 0.8 / 1.8, 2 * 0.5 / 1.5, 0], atol=1e-6)
    assert dict(plain.config) == before


def test_a_shift_is_for_one_call(pipe: Any) -> None:
    own = pipe.scheduler
    plain, moved = (np.array(sample_images(pipe, ["a cat"], [0], replace(SHORT, shift=s))[0]) for s in (None, 3.0))
    assert pipe.scheduler is own
    assert (plain != moved).any()
    with pytest.raises(ConfigError, match="shift of 0 came"):
        sample_images(pipe, ["a cat"], [0], replace(SHORT, shift=0.0))


@pytest.mark.parametrize(
    ("scheduler", "shift", "message"),
    [
        (FlowMatchEulerDiscreteScheduler(), 0.0, "shift of 0 came"),
        (UniPCMultistepScheduler(), 2.0, "UniPCMultistepScheduler has no shift"),
    ],
)
def test_what_cannot_be_shifted(scheduler: Any, shift: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shifted(scheduler, shift)
