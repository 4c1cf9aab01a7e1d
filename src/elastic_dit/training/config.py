"""What a training run is: one YAML file, every key checked."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from elastic_dit.config import ElasticConfig, explain
from elastic_dit.conversions.base import read_options
from elastic_dit.errors import ConfigError
from elastic_dit.training.yaml_file import read_yaml

Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
"""Those of diffusers that need no more than the steps: all but `piecewise_constant`."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class DataConfig(_Strict):
    """Where the image-caption pairs come from and how they are cached."""

    source: Literal["webdataset", "folder", "hub"] = "webdataset"
    """Tar shards, a folder of images with captions, or a Hugging Face dataset."""
    path: str
    """Folder of shards or images, or the dataset's name on the Hub."""
    validation: str | None = None
    """The same for validation; None measures no validation loss."""
    resolution: int = Field(default=64, gt=0)
    """Side of the square images in pixels; larger images are scaled down and centre-cropped."""
    caption_column: str = "text"
    """Caption column of a Hub dataset; `image` is the image column."""
    cache: Path = Path("cache")
    """Folder for encoded latents and text states; filled on first use."""
    limit: int | None = Field(default=None, gt=0)
    """Use the first so many pairs only."""


class OptimizerConfig(_Strict):
    """AdamW, its learning rates and their schedule."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate of the backbone."""
    router_learning_rate: float = Field(default=6e-4, gt=0)
    """Peak learning rate of the routers."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the first and second moments."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    schedule: Schedule = "cosine"
    """One of diffusers' schedules."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps of linear warm-up."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""


class FlowConfig(_Strict):
    """Flow matching (Eq. 2): which noise levels are drawn and how they are weighted."""

    timestep_sampling: Literal["none", "logit_normal", "mode"] = "none"
    """`none` is uniform, as in the paper; the others are those of diffusers' SD3 and FLUX scripts."""
    logit_mean: float = 0.0
    """Mean of the logit-normal."""
    logit_std: float = Field(default=1.0, gt=0)
    """Standard deviation of the logit-normal."""
    mode_scale: float = 1.29
    """Scale of the mode sampler."""
    loss_weighting: Literal["none", "sigma_sqrt", "cosmap"] = "none"
    """Loss weights of diffusers' scripts."""
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of captions replaced by the empty one, for classifier-free guidance."""
    distillation: float = Field(default=0.0, ge=0)
    """Weight of the squared error to the dense model's velocity (elastic and converted models only)."""


class LoraConfig(_Strict):
    """LoRA on the backbone, where `trainable: lora`; of an `adapter` that has one, that one goes on."""

    rank: int = Field(default=16, gt=0)
    """Rank of the update."""
    alpha: int = Field(default=16, gt=0)
    """Scale: the update is multiplied by alpha / rank."""
    target_modules: str | list[str] = "all-linear"
    """Which layers, as in peft."""


class TrainConfig(_Strict):
    """A run of `elastic-dit train`."""

    output: Path
    """Folder of the run: logs, samples, checkpoints and the result."""
    model: str
    """A pipeline folder or Hub id, or `emoji-flux:SIZE` for a fresh small model."""
    adapter: str | None = None
    """Go on from this adapter folder. Beside an `elastic` section: from its weights, with fresh routers that start at
    its route if it has a fixed one."""
    elastic: ElasticConfig | None = None
    """The elastic model to train; None trains the dense one."""
    conversion: dict[str, Any] | None = None
    """Train another published method in its place: `method` names it, the other keys are its options. Beside an
    `elastic` section, whose `width_streams` must be empty, both are trained together: routers decide which blocks run,
    and the method what runs in them."""
    trainable: Literal["full", "lora", "routers"] = "full"
    """What learns beside the routers: all of the backbone, a LoRA on it, or nothing."""
    lora: LoraConfig = LoraConfig()
    """The LoRA, if any."""
    data: DataConfig
    """The data."""
    flow: FlowConfig = FlowConfig()
    """The flow-matching loss."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimiser."""

    steps: int = Field(gt=0)
    """Optimiser steps."""
    batch_size: int = Field(default=8, gt=0)
    """Samples a device sees in one forward."""
    gradient_accumulation_steps: int = Field(default=1, gt=0)
    """Forwards to an optimiser step."""
    gradient_checkpointing: bool = False
    """Recompute blocks in the backward pass to save memory."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast dtype; routers stay in float32."""
    compile: bool = False
    """Compile the blocks (torch.compile): slower start, faster steps."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the averaged weights that are saved and sampled from; 0 keeps no average."""
    seed: int = 0
    """Seed of weights, data order, noise and timesteps."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads; None leaves torch's choice."""

    importance_batches: int = Field(default=8, ge=0)
    """Batches that measure the MLP channels' importance before elastic training; 0 leaves their order."""
    ramp_steps: int = Field(default=200, ge=0)
    """Steps over which the compute target goes from 1 to the budget."""
    router_steps: int | None = Field(default=None, ge=0)
    """Steps in which routers learn; after them they are frozen and without noise, and the backbone learns their routes.
    None: they learn to the end. 0: they stay as they start."""

    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Dtype of the backbone's weights in the result."""
    log_every: int = Field(default=10, gt=0)
    """Steps between lines of the log."""
    validate_every: int = Field(default=250, gt=0)
    """Steps between validation losses."""
    validation_batches: int = Field(default=8, gt=0)
    """Batches of a validation loss."""
    sample_every: int = Field(default=500, gt=0)
    """Steps between sample grids."""
    sample_prompts: list[str] = []
    """Prompts of the grids; none, no grids."""
    checkpoint_every: int = Field(default=250, gt=0)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """How many of the newest checkpoints are kept."""

    @model_validator(mode="after")
    def _conversion_is_alone(self) -> "TrainConfig":
        if self.conversion is None:
            return self
        method, _ = read_options(self.conversion)
        others = {"adapter": self.adapter, "compile": self.compile}
        others |= {"gradient_checkpointing": self.gradient_checkpointing}
        if not method.routable:
            others["elastic"] = self.elastic
        elif self.elastic is not None and (self.elastic.width_streams or self.elastic.route):
            raise ValueError("beside a conversion, elastic.width_streams must be [] and elastic.route is not for it")
        if taken := [name for name, value in others.items() if value]:
            raise ValueError(f"a conversion is trained from the dense model, uncompiled; it goes with no {taken[0]}")
        if self.trainable != "full":
            raise ValueError(f"a conversion trains all weights; trainable is {self.trainable}")
        return self

    @classmethod
    def load(cls, file: Path, changes: Iterable[tuple[str, Any]] = ()) -> "TrainConfig":
        """Read and check a YAML file.

        Args:
            file: the YAML file.
            changes: keys whose values are others, such as `optimizer.learning_rate`, with those values.

        Raises:
            ConfigError: the file is missing, is no YAML, or has an unknown key, a key twice or a bad value.
        """
        values = read_yaml(file, "a training config (see configs/)")
        try:
            return cls.model_validate(_changed(values, changes))
        except ValidationError as error:
            raise ConfigError(f"{file}: {explain(error, cls)}") from error


def _changed(values: dict[str, Any], changes: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Values of which some are others; an entry that changes in part keeps the rest."""
    changed = copy.deepcopy(values)
    for key, value in changes:
        *path, last = key.split(".")
        here = changed
        for name in path:
            if not isinstance(here.get(name), dict):
                here[name] = {}
            here = here[name]
        here[last] = value
    return changed
