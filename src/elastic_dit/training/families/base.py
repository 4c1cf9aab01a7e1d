"""What training needs to know of a pipeline: how it encodes, and what its transformer is called with."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from elastic_dit.errors import BackboneError
from elastic_dit.registry import Registry

Text = dict[str, Tensor]
"""Text states by name, each with the batch first."""


class Family(ABC):
    """One kind of pipeline. B batch, T image tokens, C token channels."""

    pipeline_classes: ClassVar[tuple[str, ...]]
    """Names of the pipeline classes it serves."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def encoders(self) -> list[tuple[str, str]]:
        """Which parts encode, and where they came from: what cached latents and text states depend on."""
        parts = {n: p for n, p in self.pipeline.components.items() if n not in ("transformer", "scheduler")}
        return [
            (name, str(getattr(getattr(part, "config", part), "_name_or_path", ""))) for name, part in parts.items()
        ]

    @abstractmethod
    def encode_images(self, images: list[Image.Image]) -> Tensor:
        """Square images to clean latents (B, c, h, w)."""

    @abstractmethod
    def encode_prompts(self, prompts: list[str]) -> Text:
        """B captions to text states."""

    @abstractmethod
    def pack(self, latents: Tensor) -> Tensor:
        """Latents (B, c, h, w) to tokens (B, T, C): the space noise is added in."""

    @abstractmethod
    def inputs(self, tokens: Tensor, sigma: Tensor, text: Text, latent_shape: torch.Size) -> dict[str, Any]:
        """Keyword arguments of the transformer for noisy tokens (B, T, C) at noise levels sigma (B,)."""

    def unused_layers(self) -> list[nn.Module]:
        """Layers of the transformer whose output it throws away: no gradient ever reaches them."""
        return []

    def generate(self, prompts: list[str], seed: int, size: int) -> list[Image.Image]:
        """Images for a sample grid, one generator a prompt."""
        generators = [torch.Generator().manual_seed(seed + index) for index in range(len(prompts))]
        return self.pipeline(prompt=prompts, height=size, width=size, generator=generators).images


families: Registry[type[Family]] = Registry("pipeline family", "elastic_dit.training.families")


def family_of(pipeline: Any) -> Family:
    """The family that serves a pipeline.

    Raises:
        BackboneError: no family does; the message lists the classes served.
    """
    name = type(pipeline).__name__
    for family in families.values():
        if name in family.pipeline_classes:
            return family(pipeline)
    served = sorted(cls for family in families.values() for cls in family.pipeline_classes)
    raise BackboneError(f"cannot train a {name}; pipelines known: {', '.join(served)}")
