"""What is trained: a pipeline's transformer, its routers if elastic, and which parameters learn."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from elastic_dit.models import EmojiFluxPipeline
from elastic_dit.training.config import TrainConfig
from elastic_dit.training.families.base import Family, family_of

FRESH = "emoji-flux:"


class TrainableModel(nn.Module):
    """Transformer and routers under one module, so that DDP and FSDP see every parameter."""

    def __init__(self, transformer: nn.Module, routers: nn.Module | None) -> None:
        super().__init__()
        self.transformer = transformer
        self.routers = routers

    def forward(self, **inputs: Any) -> Tensor:
        """The velocity (B, T, C); the transformer's hooks call the routers."""
        return self.transformer(**inputs, return_dict=False)[0]


class Trainee:
    """The pipeline being trained, dense or elastic."""

    def __init__(self, config: TrainConfig, pipeline: Any) -> None:
        self.config = config
        self.pipeline = pipeline
        self.family: Family = family_of(pipeline)
        self.transformer: nn.Module = pipeline.transformer
        self.elastic: Any = None
        self.module = TrainableModel(self.transformer, None)

    def prepare_elastic(self, batches: Iterator[dict[str, Any]], device: torch.device) -> None:
        """Make the transformer elastic, with its MLP channels in the order of their importance."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Backbone and routers with their learning rates."""
        return [{"params": list(self.transformer.parameters()), "lr": self.config.optimizer.learning_rate}]

    def compile(self) -> None:
        """Compile the blocks."""
        self.transformer.compile_repeated_blocks(fullgraph=True)

    def training_state(self) -> dict[str, Any]:
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        pass

    @contextmanager
    def inference(self) -> Iterator[None]:
        yield

    def save_result(self, output: Path) -> Path:
        folder = output / "model"
        self.pipeline.save_pretrained(folder)
        return folder


def build_trainee(config: TrainConfig) -> Trainee:
    """Load or make the pipeline of a config."""
    if config.model.startswith(FRESH):
        pipeline = EmojiFluxPipeline.from_size(config.model.removeprefix(FRESH), config.seed)
    elif (Path(config.model) / "model_index.json").is_file() and "EmojiFluxPipeline" in (
        Path(config.model) / "model_index.json"
    ).read_text():
        pipeline = EmojiFluxPipeline.from_pretrained(config.model)
    else:
        pipeline = DiffusionPipeline.from_pretrained(config.model)
    pipeline.set_progress_bar_config(disable=True)
    return Trainee(config, pipeline)
