"""A tiny emoji pipeline and an adapter for it on disk, with routes that are known in advance."""

from pathlib import Path

import torch

from elastic_dit import ElasticConfig, elasticize, restore
from elastic_dit.models import EmojiFluxPipeline

OPEN, SKIPPED, BORDER = 3.0, -3.0, 0.08
"""Gate logits: always run, always skip, and just above tau, inside the band."""
STEPS = 5
ROUTES = ("2.4", "2.~", "2.~", "2.~", "2.4")
"""What the three blocks do in five steps: run at the second width; skip; run, be reused three times, run."""

EVERYDAY_SPRITES = ("banana", "red apple", "balloon", "cat face", "dog face", "red heart")
"""Everyday concepts among tests/data/sprites, which also has a racing car and a school."""


def save_pair(folder: Path) -> tuple[Path, Path]:
    """Write the pipeline and the adapter; returns their folders."""
    pipe = EmojiFluxPipeline.from_size("tiny")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():  # adaLN-Zero would hide every block
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    pipe.save_pretrained(folder / "model")
    elastic = elasticize(pipe, ElasticConfig.of(delta=0.1, max_reuse=3, router_hidden_size=8))
    with torch.no_grad():
        for router, gate, width in zip(elastic.routers, (OPEN, SKIPPED, BORDER), (1, 3, 3), strict=True):
            router.gate_head.weight.zero_()
            router.gate_head.bias.fill_(gate)
            router.width_head.weight.zero_()
            router.width_head.bias.copy_(torch.eye(4)[width])
    return folder / "model", elastic.save(folder / "adapter")


def save_dial(pipe: EmojiFluxPipeline, folder: Path) -> Path:
    """Write an adapter of that pipeline for budgets from 0.3 to 1: two of three blocks close on the way down."""
    path = ((0.9, 1, 0.5), (0.75, 1, 0.0), (0.45, 2, 0.0))
    elastic = elasticize(pipe, ElasticConfig.of(router_input="timestep", init_path=path, budget_range=(0.3, 1.0)))
    try:
        return elastic.save(folder)
    finally:
        restore(pipe)
