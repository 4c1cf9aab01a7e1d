"""Held-out scenes as pairs: prompts to draw, and their true images with noise of a given level."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image

from elastic_dit.evaluation.judge_data import read_pictures
from elastic_dit.evaluation.scene_eval import Prompt, choose_prompts
from elastic_dit.training.data.sources import square
from elastic_dit.training.families.base import Family
from elastic_dit.training.flow import NoisyBatch, mix


class HeldOut(NamedTuple):
    """A scene that the model was not trained on."""

    prompt: Prompt
    image: Image.Image


def read_held_out(folders: Sequence[str], per_task: int) -> list[HeldOut]:
    """As many scenes for each of the six tasks, from folders that `data prepare` wrote.

    Raises:
        DataError: no data there, or a task without a scene.
    """
    pictures = read_pictures(folders)
    images = {(caption, scene): image for image, caption, scene in zip(*pictures, strict=True)}
    prompts = choose_prompts(zip(pictures.captions, pictures.scenes, strict=True), per_task)
    return [HeldOut(prompt, images[prompt.caption, prompt.scene]) for prompt in prompts]


class NoisyPairs:
    """Pairs encoded once, to which any amount of the same noise can be added.

    Args:
        family: of the pipeline.
        pairs: N scenes.
        resolution: side of the images in pixels.
        batch: pairs in a forward.
        seed: of the noise, which is the same at every level.
    """

    def __init__(self, family: Family, pairs: Sequence[HeldOut], resolution: int, batch: int, seed: int) -> None:
        self.family, self.seed = family, seed
        device = family.pipeline.transformer.device
        self._encoded: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
        with torch.no_grad():
            for start in range(0, len(pairs), batch):
                some = pairs[start : start + batch]
                latents = family.encode_images([square(one.image, resolution) for one in some]).to(device)
                self._encoded.append((latents, family.encode_prompts([one.prompt.caption for one in some])))

    def at(self, sigma: float) -> list[tuple[dict[str, Any], NoisyBatch]]:
        """The transformer's inputs at one noise level, and what they were made from, batch by batch."""
        generator = torch.Generator().manual_seed(self.seed)
        made: list[tuple[dict[str, Any], NoisyBatch]] = []
        for latents, text in self._encoded:
            levels = torch.full((len(latents),), sigma, device=latents.device)
            noisy = mix(self.family.pack(latents), levels, generator)
            made.append((self.family.inputs(noisy.tokens, noisy.sigma, text, latents.shape), noisy))
        return made
