"""One call for every text-to-image pipeline: prompts and seeds in, images out."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from elastic_dit.errors import BackboneError, ConfigError


@dataclass(frozen=True)
class SampleSettings:
    """How images are drawn; None leaves a pipeline's own default."""

    steps: int | None = None
    """Denoising steps."""
    guidance: float | None = None
    """Guidance scale."""
    height: int | None = None
    """Pixels."""
    width: int | None = None
    """Pixels."""
    shift: float | None = None
    """Of the scheduler's noise levels, see `shifted`."""


def sample_images(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], settings: SampleSettings
) -> list[Image.Image]:
    """One image a prompt. Noise is drawn on the CPU, so that a seed is the same image on every device.

    Args:
        pipe: a diffusers pipeline from text to images.
        prompts: B texts.
        seeds: B seeds.
        settings: steps, guidance, size and shift.

    Raises:
        BackboneError: the pipeline makes no images from text.
        ConfigError: its scheduler cannot be shifted so.
    """
    known = inspect.signature(type(pipe).__call__).parameters
    if "prompt" not in known or "generator" not in known or "num_frames" in known:
        raise BackboneError(f"{type(pipe).__name__} is no text-to-image pipeline; expected one that returns images")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    arguments: dict[str, Any] = {
        "num_inference_steps": settings.steps,
        "height": settings.height,
        "width": settings.width,
    }
    if settings.guidance is not None:
        arguments |= _guidance(pipe, known, settings.guidance, len(prompts))
    given = {name: value for name, value in arguments.items() if value is not None}
    with _spaced(pipe, settings.shift):
        return list(pipe(prompt=list(prompts), generator=generators, **given).images)


@contextmanager
def _spaced(pipe: Any, shift: float | None) -> Iterator[None]:
    """The pipeline with steps at other noise levels; None: at its own."""
    own = pipe.scheduler
    if shift is not None:
        pipe.scheduler = shifted(own, shift)
    try:
        yield
    finally:
        pipe.scheduler = own


def shifted(scheduler: Any, shift: float) -> Any:
    """A scheduler like another one, with the noise levels of its steps shifted (SD3, arXiv 2403.03206, eq. 23).

    A shift that grows with the image (`use_dynamic_shifting`: FLUX, Qwen-Image) is replaced by this one.

    Args:
        scheduler: one with the noise levels of flow matching: `shift`, or `flow_shift` and `use_flow_sigmas`.
        shift: above 0; 1 leaves the levels evenly spaced, above 1 more steps are at high noise.

    Raises:
        ConfigError: a shift of 0 or less, or a scheduler of other noise levels.
    """
    if shift <= 0:
        raise ConfigError(f"a shift of {shift:g} came; expected a number above 0")
    name = "flow_shift" if scheduler.config.get("use_flow_sigmas") else "shift"
    if name not in scheduler.config:
        raise ConfigError(
            f"{type(scheduler).__name__} has no shift here, and {shift:g} was asked for; expected a flow matching "
            "scheduler, or one with `use_flow_sigmas`"
        )
    return type(scheduler).from_config(scheduler.config, **{name: shift, "use_dynamic_shifting": False})


def _guidance(pipe: Any, known: Any, scale: float, batch: int) -> dict[str, Any]:
    """Two names for one number: `true_cfg_scale` runs a second pass, where `guidance_scale` is a distilled input."""
    distilled = getattr(pipe.transformer.config, "guidance_embeds", False)
    if "true_cfg_scale" in known and not distilled:
        return {"true_cfg_scale": scale, "negative_prompt": [" "] * batch}
    return {"guidance_scale": scale}
