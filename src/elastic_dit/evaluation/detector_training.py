"""Train the sprite detector on rendered scenes, whose boxes, paints and styles are known."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from elastic_dit.evaluation.natural_colors import NaturalColors
from elastic_dit.evaluation.sprite_detector import CELLS, COLORS, Maps, SpriteDetector, bytes_of, mirrored
from elastic_dit.evaluation.variants import Progress
from elastic_dit.training.data.scenes import Scene, SceneObject

SPREAD = 0.6
"""Deviation of the bump around a centre, in cells."""
FOCUS, TOLERANCE = 2, 4
"""Exponents of CenterNet's focal loss: on hard cells, and on cells near a centre."""
BOX_WEIGHT = 2.0
OTHER_HUES, OTHER_HUES_PAINTED = 0.5, 0.15
"""Share of the images shown in other hues: those without paint, and those whose paint would be lost on the training."""


class Targets(NamedTuple):
    """Maps as they should be, and where the centres are."""

    heat: Tensor
    """(N, C, 8, 8) in 0..1; 1 at a centre."""
    color: Tensor
    """(N, 8, 8) index; -1 where there is no centre, or no telling."""
    style: Tensor
    """(N, 8, 8) index; -1 where there is no centre."""
    box: Tensor
    """(N, 4, 8, 8)."""


def train_detector(
    images: Sequence[Image.Image],
    scenes: Sequence[Scene],
    natural: NaturalColors,
    *,
    epochs: int,
    batch: int = 64,
    peak_rate: float = 3e-3,
    seed: int = 0,
    progress: Progress = lambda label, done, total: None,
) -> SpriteDetector:
    """A detector of everything that the scenes show.

    Args:
        images: N pictures of the scenes.
        scenes: what they show.
        natural: the colours of things as they are.
        epochs: passes over all of them.
        batch: pictures in a step.
        peak_rate: AdamW's highest learning rate.
        seed: of weights, order and augmentation.
        progress: called with the loss, steps done and to do.
    """
    objects = [item for scene in scenes for item in scene.objects]
    torch.manual_seed(seed)
    detector = SpriteDetector(sorted({item.label for item in objects}), sorted({item.style for item in objects}))
    pixels = bytes_of(images)
    targets = _stack([targets_of(scene, detector, natural) for scene in scenes])
    other_hues = torch.tensor([_share_of_other_hues(scene) for scene in scenes])
    steps = max(1, len(images) // batch) * epochs
    optimizer = torch.optim.AdamW(detector.parameters(), lr=peak_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_rate, total_steps=steps, pct_start=0.15)
    detector.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  a third faster
    order = torch.randperm(0)
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(images))
        chosen, order = order[:batch], order[batch:]
        wanted = Targets(*(each[chosen] for each in targets))
        clean, wanted = flipped(pixels[chosen].float() / 127.5 - 1, wanted, torch.rand(len(chosen)) < 0.5)
        clean, wanted = recolored(clean, wanted, torch.rand(len(chosen)) < other_hues[chosen])
        loss = detection_loss(detector(spoiled(clean)), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(f"loss {loss.item():.3f}", step + 1, steps)
    return detector.eval()


def targets_of(scene: Scene, detector: SpriteDetector, natural: NaturalColors) -> Targets:
    """What the maps of a scene should be, N = 1."""
    heat = torch.zeros(1, len(detector.labels), CELLS, CELLS)
    color, style = (torch.full((1, CELLS, CELLS), -1) for _ in range(2))
    box = torch.zeros(1, 4, CELLS, CELLS)
    rows, columns = torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij")
    for item in scene.objects:
        left, top, right, bottom = item.box
        x, y = (left + right) / 2 * CELLS, (top + bottom) / 2 * CELLS
        column, row = min(int(x), CELLS - 1), min(int(y), CELLS - 1)
        bump = torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * SPREAD**2))
        place = heat[0, detector.labels.index(item.label)]
        torch.maximum(place, bump, out=place)
        color[0, row, column] = COLORS.index(color_of(item, natural))
        style[0, row, column] = detector.styles.index(item.style)
        box[0, :, row, column] = torch.tensor([x - column, y - row, right - left, bottom - top])
    return Targets(heat, color, style, box)


def detection_loss(maps: Maps, wanted: Targets) -> Tensor:
    """CenterNet's: focal over the heat map, and at the centres colour, style and box; by the number of objects."""
    is_center = wanted.heat == 1
    probability = maps.heat.sigmoid()
    hit = F.logsigmoid(maps.heat) * (1 - probability) ** FOCUS
    miss = F.logsigmoid(-maps.heat) * probability**FOCUS * (1 - wanted.heat) ** TOLERANCE
    count = (wanted.style >= 0).sum().clamp(min=1)
    heat = -torch.where(is_center, hit, miss).sum() / count
    choices = ((maps.color, wanted.color), (maps.style, wanted.style))
    words = [F.cross_entropy(said, right, ignore_index=-1, reduction="sum") / count for said, right in choices]
    box = ((maps.box - wanted.box).abs().sum(dim=1) * (wanted.style >= 0)).sum() / count
    return heat + sum(words) + BOX_WEIGHT * box


def color_of(item: SceneObject, natural: NaturalColors) -> str | None:
    """The paint, or the one that the thing is like as it is; else None."""
    return item.color if item.repainted else natural.get((item.label, item.style))


def flipped(pixels: Tensor, wanted: Targets, which: Tensor) -> tuple[Tensor, Targets]:
    """Some of the images and their targets mirrored."""

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(which.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return choose(pixels.flip(-1), pixels), Targets(*map(choose, mirrored(Maps(*wanted)), wanted))


def recolored(pixels: Tensor, wanted: Targets, which: Tensor) -> tuple[Tensor, Targets]:
    """Some of the images in other hues, as a thing is the same in any paint; their colours are no longer known.

    Args:
        pixels: images (N, 3, H, W).
        wanted: their targets.
        which: (N,), true where nothing in the image is known by its colour.
    """
    orders = torch.rand(len(pixels), 3).argsort(dim=1)
    mixed = pixels.gather(1, orders[:, :, None, None].expand_as(pixels))
    saturation = torch.rand(len(pixels), 1, 1, 1)
    mixed = mixed.mean(dim=1, keepdim=True) + saturation * (mixed - mixed.mean(dim=1, keepdim=True))
    color = torch.where(which[:, None, None], -1, wanted.color)
    return torch.where(which[:, None, None, None], mixed, pixels), wanted._replace(color=color)


def spoiled(pixels: Tensor) -> Tensor:
    """Images (B, 3, H, W) as a weak generator might draw them: other contrast, blurred, noisy."""
    count, side = len(pixels), pixels.shape[-1]

    def each(chance: float) -> Tensor:
        return (torch.rand(count, 1, 1, 1) < chance).float()

    contrast = 1 + 0.2 * (torch.rand(count, 1, 1, 1) - 0.5)
    bright = 0.2 * (torch.rand(count, 1, 1, 1) - 0.5)
    pixels = pixels * contrast + bright
    small = F.interpolate(pixels, size=side // 2, mode="area")
    blurred = F.interpolate(small, size=side, mode="bilinear", align_corners=False)
    soft = each(0.4) * torch.rand(count, 1, 1, 1)
    pixels = pixels + soft * (blurred - pixels)
    noise = each(0.5) * 0.15 * torch.rand(count, 1, 1, 1)
    return pixels + noise * torch.randn_like(pixels)


def _share_of_other_hues(scene: Scene) -> float:
    if any(item.color and not item.repainted for item in scene.objects):
        return 0.0  # a red apple in green is no red apple
    return OTHER_HUES_PAINTED if any(item.repainted for item in scene.objects) else OTHER_HUES


def _stack(parts: Sequence[Targets]) -> Targets:
    return Targets(*(torch.cat(each) for each in zip(*parts, strict=True)))
