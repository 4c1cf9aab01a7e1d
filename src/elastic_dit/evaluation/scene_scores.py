"""How often a model gets scenes right: several images of each prompt, by their mean. N prompts."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from elastic_dit.errors import CheckpointError
from elastic_dit.evaluation.difficulty import correlation, scene_difficulty
from elastic_dit.evaluation.sampling import SampleSettings, sample_images
from elastic_dit.evaluation.scene_eval import Prompt, is_right
from elastic_dit.evaluation.sprite_detector import SpriteDetector
from elastic_dit.evaluation.variants import Progress

APART = 100_000
"""Between the seeds of a prompt's images: the first is prompt i's at `APART + i`, away from those of judged images."""


class SceneScores:
    """Which images of which prompts are right, kept in a file as they are drawn: what is there is not drawn again.

    Args:
        file: safetensors, with a tensor of 0 and 1 (images, N) for each way to draw them.
        prompts: drawn in their order.
        settings: steps, guidance, size and shift.
        drawn_by: what else the images and their scores depend on, for a file of others to be noticed.

    Raises:
        CheckpointError: the file is none of these, or holds scores of other prompts, settings or models.
    """

    def __init__(self, file: Path, prompts: Sequence[Prompt], settings: SampleSettings, drawn_by: object) -> None:
        self.file, self.prompts, self.settings = file, prompts, settings
        told = [[prompt.caption for prompt in prompts], vars(settings), drawn_by]
        self.digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
        self.right: dict[str, Tensor] = {}
        if not file.exists():
            return
        try:
            with safe_open(file, "pt") as stored:
                digest = (stored.metadata() or {}).get("digest")
                self.right = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} holds no scores ({error}); delete it, or name another file") from error
        if digest != self.digest:
            raise CheckpointError(
                f"{file} holds scores of other prompts, settings or models; delete it, or name another file"
            )

    def __call__(
        self,
        name: str,
        pipe: Any,
        detector: SpriteDetector,
        *,
        images: int = 1,
        batch: int = 64,
        progress: Progress = lambda label, done, total: None,
    ) -> Tensor:
        """The share of each prompt's images that show what it asks for, (N,) in 0..1.

        Args:
            name: of the way to draw them.
            pipe: as it stands.
            detector: says what an image shows.
            images: of each prompt.
            batch: images in a forward.
            progress: see `Progress`.
        """
        count = len(self.prompts)
        for done in range(len(self.right.get(name, ())), images):
            right: list[bool] = []
            for start in range(0, count, batch):
                progress(name, done * count + start, images * count)
                some = self.prompts[start : start + batch]
                seeds = range((done + 1) * APART + start, (done + 1) * APART + start + len(some))
                found = detector.detect(sample_images(pipe, [one.caption for one in some], seeds, self.settings))
                right += [is_right(one.scene, seen) for one, seen in zip(some, found, strict=True)]
            new = torch.tensor([right], dtype=torch.uint8)
            self.right[name] = torch.cat([self.right[name], new]) if done else new
            self._write()
        return self.right[name][:images].float().mean(dim=0)

    def _write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_name(f".{self.file.name}.partial")
        save_file(self.right, temporary, metadata={"digest": self.digest})
        temporary.replace(self.file)


def by_task(scores: Tensor, prompts: Sequence[Prompt]) -> dict[str, list[float]]:
    """The mean scores (S,) of each task's prompts, of those of all prompts, (N, S)."""
    tasks = [prompt.scene.tag for prompt in prompts]
    return {tag: scores[[task == tag for task in tasks]].mean(dim=0).tolist() for tag in dict.fromkeys(tasks)}


def followed(spent: Tensor, scores: Tensor, prompts: Sequence[Prompt]) -> dict[str, tuple[float, float, float]]:
    """What the compute spent on prompts goes with: rank correlations, each with its 95% interval.

    Args:
        spent: on each prompt, (N,).
        scores: of each prompt from the most compute to the least, (N, S).
        prompts: N prompts.

    Returns:
        Of what is spent with `scene_difficulty`, with `failure` at the most compute, and with the `gain` of the most
        over the least; and of difficulty with that gain, `difficulty_and_gain`, which asks nothing of who spends.
    """
    difficulty = torch.tensor([scene_difficulty(prompt) for prompt in prompts])
    gain = scores[:, 0] - scores[:, -1]
    pairs = {
        "scene_difficulty": (spent, difficulty),
        "failure": (spent, 1 - scores[:, 0]),
        "gain": (spent, gain),
        "difficulty_and_gain": (difficulty, gain),
    }
    found = {name: correlation(one[None].numpy(), other.numpy()) for name, (one, other) in pairs.items()}
    return {name: (one.value, *one.interval) for name, one in found.items()}
