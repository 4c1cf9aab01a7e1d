"""Which sprites an image shows, where and in what colour: a small network with a heat map of centres.

As in CenterNet (arXiv 1904.07850). B images, C labels, K colours, S styles; a map has 8 x 8 cells of 8 pixels.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from elastic_dit.errors import CheckpointError
from elastic_dit.evaluation.scene_eval import Found
from elastic_dit.training.data.scenes import TINTS
from elastic_dit.training.data.sources import square

DETECTOR = "detector.safetensors"
"""In a judge's folder."""
SIZE = 64
"""Side of the images it reads, in pixels."""
CELLS = 8
"""Cells on a side."""
COLORS = (None, *TINTS)
"""Of a paint's colour, or of none's; see `natural_colors`."""
THRESHOLD = 0.3
"""Least height of a peak (GenEval's detector's)."""


class Maps(NamedTuple):
    """What the network says of every cell, as logits where it is a choice."""

    heat: Tensor
    """(B, C, 8, 8): an object of this label has its centre here."""
    color: Tensor
    """(B, K, 8, 8)."""
    style: Tensor
    """(B, S, 8, 8)."""
    box: Tensor
    """(B, 4, 8, 8): the centre's place in its cell, 0..1, and width and height as shares of the frame."""


class SpriteDetector(nn.Module):
    """The network and the words it knows.

    Args:
        labels: C names of things.
        styles: S names of styles.
        width: channels of the first stage; later ones have two and four times as many.
    """

    def __init__(self, labels: Sequence[str], styles: Sequence[str], width: int = 24) -> None:
        super().__init__()
        self.labels, self.styles, self.width = tuple(labels), tuple(styles), width
        self.outputs = (len(self.labels), len(COLORS), len(self.styles), 4)
        self.layers = nn.Sequential(
            *_stage(3, width, blocks=1),
            *_stage(width, 2 * width, blocks=2),
            *_stage(2 * width, 4 * width, blocks=3),
            nn.Conv2d(4 * width, sum(self.outputs), 1),
        )
        nn.init.constant_(self.layers[-1].bias[: len(self.labels)], -4.0)  # type: ignore[index]  few cells are centres

    def forward(self, pixels: Tensor) -> Maps:
        """Maps of images (B, 3, 64, 64) in -1..1."""
        return Maps(*self.layers(pixels).split(self.outputs, dim=1))

    @torch.no_grad()
    def detect(self, images: Sequence[Image.Image], batch: int = 64) -> list[list[Found]]:
        """What each image shows, by the mean over it and its mirror image; images of another size are scaled."""
        self.eval()
        device = next(self.parameters()).device
        found: list[list[Found]] = []
        for start in range(0, len(images), batch):
            pixels = pixels_of(images[start : start + batch]).to(device)
            maps = [(a + b) / 2 for a, b in zip(self(pixels), mirrored(self(pixels.flip(-1))), strict=True)]
            found += [list(self._peaks(Maps(*each))) for each in zip(*(each.cpu() for each in maps), strict=True)]
        return found

    def _peaks(self, maps: Maps) -> Iterator[Found]:
        """The objects of one image: cells whose best label is surer than that of all neighbours."""
        height, label = maps.heat.sigmoid().max(dim=0)  # (8, 8)
        highest = F.max_pool2d(height[None], 3, stride=1, padding=1)[0]
        for y, x in ((height == highest) & (height > THRESHOLD)).nonzero().tolist():
            inside_x, inside_y, width, tall = maps.box[:, y, x].tolist()
            center_x, center_y = (x + inside_x) / CELLS, (y + inside_y) / CELLS
            yield Found(
                label=self.labels[int(label[y, x])],
                color=COLORS[int(maps.color[:, y, x].argmax())],
                style=self.styles[int(maps.style[:, y, x].argmax())],
                box=(center_x - width / 2, center_y - tall / 2, center_x + width / 2, center_y + tall / 2),
                score=float(height[y, x]),
            )

    def save(self, file: Path) -> None:
        """Write weights (float16) and words into one safetensors file, whole or not at all."""
        words = json.dumps({"labels": self.labels, "styles": self.styles, "width": self.width})
        state = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.partial")
        save_file(state, temporary, metadata={"words": words})
        temporary.replace(file)

    @classmethod
    def load(cls, file: Path) -> "SpriteDetector":
        """Read what `save` wrote.

        Raises:
            CheckpointError: no such file, or another one.
        """
        try:
            with safe_open(file, "pt") as stored:
                words = json.loads((stored.metadata() or {})["words"])
                detector = cls(words["labels"], words["styles"], words["width"])
                detector.load_state_dict({name: stored.get_tensor(name).float() for name in stored.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{file} holds no sprite detector ({error}); expected a file that `elastic-dit judge train` wrote"
            ) from error
        return detector.eval()


def mirrored(maps: Maps) -> Maps:
    """The maps of mirror images, as those of the images."""
    heat, color, style, box = (each.flip(-1) for each in maps)
    return Maps(heat, color, style, torch.cat([1 - box[:, :1], box[:, 1:]], dim=1))  # the place within a cell


def bytes_of(images: Sequence[Image.Image]) -> Tensor:
    """Images as (B, 3, 64, 64) in 0..255."""
    arrays = np.stack([np.asarray(square(image, SIZE)) for image in images])  # (B, 64, 64, 3)
    return torch.from_numpy(arrays).permute(0, 3, 1, 2)


def pixels_of(images: Sequence[Image.Image]) -> Tensor:
    """Images as (B, 3, 64, 64) in -1..1."""
    return bytes_of(images).float() / 127.5 - 1


class _Block(nn.Module):
    """Two convolutions around a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_convolution(width, width), *_convolution(width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.layers(hidden)


def _stage(inputs: int, outputs: int, blocks: int) -> list[nn.Module]:
    """Halve the side, then refine."""
    return [*_convolution(inputs, outputs, stride=2), *(_Block(outputs) for _ in range(blocks))]


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()]
