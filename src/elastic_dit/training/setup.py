"""What is trained: a pipeline's transformer, its routers if elastic, and which parameters learn."""

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elastic_dit.checkpoint import ChangedWeights
from elastic_dit.config import ElasticConfig
from elastic_dit.conversions.base import ROUTERS, ROUTES, Converted, convert, save_converted
from elastic_dit.core.objective import BudgetLoss, sandwich
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.errors import ConfigError
from elastic_dit.files import replaced_folder
from elastic_dit.models.emoji_flux import EmojiFluxPipeline
from elastic_dit.models.loading import load_pipeline
from elastic_dit.training.config import TrainConfig
from elastic_dit.training.families.base import Family, family_of
from elastic_dit.training.flow import NoisyBatch
from elastic_dit.training.imitation import imitate
from elastic_dit.training.importance import Orders, order_channels
from elastic_dit.verbs import elasticize, load, reroute, restore

FRESH = "emoji-flux:"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
    """The pipeline being trained, dense, elastic or converted."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.pipeline: Any = _pipeline(config)
        self.pipeline.set_progress_bar_config(disable=True)
        self.family: Family = family_of(self.pipeline)
        self.transformer: Any = self.pipeline.transformer
        self.elastic: ElasticModel | None = None
        self.converted: Converted | None = None
        self.orders: Orders | None = None
        """In which the MLP channels were put; set before `prepare`, they are not measured again."""
        self._teacher: nn.Module | None = None
        if config.elastic is None and config.adapter is None and config.trainable == "routers":
            raise ConfigError("trainable: routers needs an `elastic` section, or an `adapter` to go on from")

    def prepare(self, batches: Sequence[tuple[dict[str, Any], NoisyBatch]], device: torch.device) -> TrainableModel:
        """Put LoRA and routers on, choose what learns, and order the MLP channels by importance.

        Args:
            batches: transformer inputs, and what they were made from, to measure importance on and to fit a
                schedule to.
            device: where training will run.

        Raises:
            ConfigError: nothing would learn.
        """
        config = self.config
        self.transformer.to(device)
        self.transformer.requires_grad_(config.trainable == "full")
        if config.flow.distillation:
            self._teacher = copy.deepcopy(self.transformer).requires_grad_(False)
        if config.conversion is not None:
            self._convert(config.conversion, [inputs for inputs, _ in batches])
        if config.adapter is not None:
            self.elastic = load(self.pipeline, config.adapter)
            if config.elastic is not None:
                self.elastic = reroute(self.elastic, _started(config.elastic, self.elastic.config))
                self.elastic.stack.to(device)
            self.transformer.requires_grad_(config.trainable == "full")
        if config.trainable == "lora":
            self._learn_lora()
        if config.adapter is None and config.elastic is not None:
            self.elastic = elasticize(self.pipeline, config.elastic)
            self.elastic.stack.to(device)
            ordered = self.converted is not None or config.elastic.init != "full_capacity"
            if config.importance_batches and not ordered:
                self.orders = order_channels(self.elastic, (inputs for inputs, _ in batches), self.orders)
        if self.elastic is not None and config.elastic is not None and self.elastic.config.init_schedule:
            imitate(self.elastic, batches)
        for layer in self.family.unused_layers():  # what has no gradient, DDP would wait for
            layer.requires_grad_(False)
        if self.elastic is None:
            if config.gradient_checkpointing:
                self.transformer.enable_gradient_checkpointing()
            return TrainableModel(self.transformer, None)
        self.elastic.mean.window = config.gradient_accumulation_steps
        self.elastic.train_mode(gradient_checkpointing=config.gradient_checkpointing)
        for site, width in zip(self.elastic.sites, self.elastic.config.route or (), strict=False):
            if not width:  # nor has what never runs
                site.block.requires_grad_(False)
        module = TrainableModel(self.transformer, self.elastic.stack if self.routed else None)
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise ConfigError(
                f"trainable: {config.trainable} leaves nothing to learn: a fixed route has no routers; train full or "
                "lora, or add an `elastic` section for fresh routers"
            )
        return module

    def _learn_lora(self) -> None:
        """The adapter's own LoRA goes on; where there is none, a fresh one begins."""
        if getattr(self.transformer, "peft_config", None):
            for name, parameter in self.transformer.named_parameters():
                if ".lora_" in name:
                    parameter.requires_grad_(True)
            return
        from peft import LoraConfig

        options = self.config.lora
        lora = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=options.target_modules)
        self.transformer.add_adapter(lora)

    def _convert(self, values: dict[str, Any], batches: Sequence[dict[str, Any]]) -> None:
        """Another method's transformer, which starts from the same order of MLP channels."""
        if not batches:
            raise ConfigError("a conversion counts its FLOPs on training batches: importance_batches must not be 0")
        self.orders = order_channels(elasticize(self.transformer, ElasticConfig()), batches, self.orders)
        restore(self.transformer)
        dense = self._teacher or copy.deepcopy(self.transformer)
        self.converted = convert(self.transformer, values)
        self.converted.price(dense, batches[0])
        if self._teacher is not None:
            self.converted.follow(self._teacher)

    @property
    def routed(self) -> bool:
        """Whether routers are trained: the model is elastic, and not by a fixed route."""
        return self.elastic is not None and self.elastic.config.route is None

    def park_encoders(self) -> None:
        """Everything but the transformer to the CPU: the data is encoded, and memory is for training."""
        for part in self.pipeline.components.values():
            if isinstance(part, nn.Module) and part is not self.transformer:
                part.to("cpu")

    def parameter_groups(self, module: TrainableModel) -> list[dict[str, Any]]:
        """Backbone and routers with their learning rates."""
        rates = self.config.optimizer
        learning = [(name.startswith(f"{ROUTERS}."), p) for name, p in module.transformer.named_parameters()]
        backbone, routers = (
            [p for decides, p in learning if p.requires_grad and decides == kind] for kind in (False, True)
        )
        groups = [{"params": backbone, "lr": rates.learning_rate}] if backbone else []
        routers += module.routers.parameters() if module.routers is not None else []
        if routers:
            groups.append({"params": routers, "lr": rates.router_learning_rate})
        return groups

    def compile(self) -> None:
        """Compile the blocks, one graph a class."""
        if self.elastic is None:
            self.transformer.compile_repeated_blocks(fullgraph=True)
        else:
            self.elastic.compile(fullgraph=True)

    def draw_routing(self, batch: int, generator: torch.Generator, step: int) -> None:
        """What is random in the next forward's routes: each sample's budget, and noise, where the config has them."""
        if self.converted is not None:
            self.converted.generator, self.converted.ramp = generator, self._ramp(step)
        if self.elastic is not None:
            self.elastic.seed_noise(generator, enabled=not self.settled(step))
        if self.elastic is not None and (limits := self.elastic.config.budget_range):
            self.elastic.budget = sandwich(batch, *limits, generator)

    def budget_loss(self, step: int) -> BudgetLoss | None:
        """What holds the last forward's routes to the budget, if they are learned."""
        own = self.converted.loss() if self.converted is not None else None
        routes = self.elastic.losses(self._ramp(step)) if self.elastic is not None and self.routed else None
        if own is None or routes is None:
            return own or routes
        return BudgetLoss(own.total + routes.total, {f"conversion/{k}": v for k, v in own.logs.items()} | routes.logs)

    def _ramp(self, step: int) -> float:
        return min(1.0, (step + 1) / max(1, self.config.ramp_steps))

    def settled(self, step: int) -> bool:
        """Whether the routers have learned all they will before this step."""
        return self.config.router_steps is not None and step >= self.config.router_steps

    def freeze_routers(self) -> None:
        """Drop the routers' gradients, so that the optimiser leaves them as they are.

        Routers of the timestep read the backbone's embedding of it and nothing else: that stays too, and so do all of
        their decisions.
        """
        if self.elastic is None:
            return
        for part in (self.elastic.stack.condition, self.elastic.stack.routers):
            if part is not None:
                part.zero_grad(set_to_none=True)
        if self.elastic.config.router_input == "timestep":
            embedder = self.transformer.get_submodule(self.elastic.backbone.timestep_embedder)
            embedder.zero_grad(set_to_none=True)

    def default_budget(self) -> None:
        """The dial back to where it stands after loading."""
        if self.elastic is not None and self.elastic.config.budget_range:
            self.elastic.budget = self.elastic.config.default_budget

    def distillation(self, predicted: Tensor, inputs: dict[str, Any], values: dict[str, float]) -> Tensor | float:
        """Weighted squared error to the dense model's velocity; 0 without a weight, and for the dense model."""
        if self._teacher is None or (self.elastic is None and self.converted is None):
            return 0.0
        with torch.no_grad():
            target = self._teacher(**inputs, return_dict=False)[0]
        error = (predicted.float() - target.float()).square().mean()
        values["distillation_loss"] = float(error.detach())
        return self.config.flow.distillation * error

    def training_state(self) -> dict[str, Any]:
        """What an exact resume needs beside weights and optimiser."""
        state: dict[str, Any] = {"orders": self.orders}
        if self.elastic is not None:
            state["budget_history"] = {name: list(past) for name, past in self.elastic.mean.history.items()}
        return state

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Undo `training_state`, but for the orders, which `prepare` needs."""
        if self.elastic is not None:
            mean = self.elastic.mean
            mean.history = {n: deque(past, maxlen=mean.window - 1) for n, past in state["budget_history"].items()}

    @contextmanager
    def inference(self) -> Iterator[None]:
        """The model as it will be used: blocks skipped, MLPs sliced."""
        if self.elastic is None:
            yield
            return
        self.elastic.eval_mode()
        self.default_budget()
        try:
            yield
        finally:
            self.elastic.train_mode(gradient_checkpointing=self.config.gradient_checkpointing)

    def save_result(self, output: Path) -> Path:
        """The dense pipeline to `output/model`, the adapter to `output/adapter`, another method's there as well."""
        dtype = DTYPES[self.config.save_dtype]
        if self.converted is not None:
            with replaced_folder(output / "adapter") as folder:
                save_converted(folder, self.converted, dtype)
                if self.elastic is not None:  # all weights are there already
                    self.elastic.weights = ChangedWeights()
                    self.elastic.save(folder / ROUTES, dtype)
            return output / "adapter"
        if self.elastic is not None:
            return self.elastic.save(output / "adapter", dtype)
        if self.config.trainable == "lora":
            with replaced_folder(output / "lora") as folder:
                self.transformer.save_lora_adapter(folder)
            return output / "lora"
        saved = copy.copy(self.pipeline)
        if self.transformer.dtype != dtype:
            saved.transformer = copy.deepcopy(self.transformer).to(dtype)
        with replaced_folder(output / "model") as folder:
            saved.save_pretrained(folder)
        return output / "model"


def _started(config: ElasticConfig, start: ElasticConfig) -> ElasticConfig:
    """A config whose routers start where an adapter does: at its fixed route, or where its routers started."""
    if start.route is not None:
        return config.model_copy(update={"init_route": start.route})
    if start.init_schedule is not None:
        return config.model_copy(update={"init_schedule": start.init_schedule})
    if start.init_path is not None:
        return ElasticConfig.of(**config.model_dump() | {"init_path": start.init_path})
    return config


def _pipeline(config: TrainConfig) -> Any:
    if config.model.startswith(FRESH):
        return EmojiFluxPipeline.from_size(config.model.removeprefix(FRESH), config.seed)
    return load_pipeline(config.model)
