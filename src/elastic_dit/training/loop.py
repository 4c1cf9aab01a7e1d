"""The training loop: dense or elastic (Eq. 17), on one process or many, resumable to the bit."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from rich.console import Console
from torch import Tensor, nn

from elastic_dit.errors import TrainingError
from elastic_dit.training.batches import Batches
from elastic_dit.training.changes import refuse_changes
from elastic_dit.training.config import TrainConfig
from elastic_dit.training.data.cache import Sample
from elastic_dit.training.families.base import Family
from elastic_dit.training.flow import NoisyBatch, flow_loss
from elastic_dit.training.log import RunLog
from elastic_dit.training.progress import StepProgress
from elastic_dit.training.samples import save_grid
from elastic_dit.training.setup import Trainee
from elastic_dit.training.state import latest_checkpoint, load_state, prune, read_meta, save_state

SIGMA_BINS = 4
PATIENCE = timedelta(days=2)
"""How long ranks wait for another: as long as the first may need to encode the data."""


class Trainer:
    """One run of a `TrainConfig`, from its newest checkpoint if there is one.

    Raises:
        ConfigError: the checkpoint is of a run that trains something else.
        CheckpointError: the checkpoint is damaged.
    """

    def __init__(self, config: TrainConfig, *, quiet: bool = False) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config = config
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else the ranks of torchrun on CPUs would not meet
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        self.main = self.accelerator.is_main_process
        self.console = Console(quiet=quiet or not self.main)
        self.checkpoints: Path = config.output / "checkpoints"
        self.start = latest_checkpoint(self.checkpoints)
        before = self._begun()
        self.trainee = Trainee(config)
        self.trainee.orders = before.get("elastic", {}).get("orders")
        self.family: Family = self.trainee.family
        self.trainee.pipeline.to(self.accelerator.device)
        self.batches = Batches(config, self.family, self.accelerator, quiet=self.console.quiet)
        self.trainee.park_encoders()
        module = self.trainee.prepare(list(self._importance_batches()), self.accelerator.device)
        optimizer = torch.optim.AdamW(
            self.trainee.parameter_groups(module),
            betas=config.optimizer.betas,
            weight_decay=config.optimizer.weight_decay,
        )
        self.model: nn.Module
        self.model, self.optimizer = self.accelerator.prepare(module, optimizer)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.scheduler = get_scheduler(
            config.optimizer.schedule,
            self.optimizer.optimizer,
            num_warmup_steps=config.optimizer.warmup_steps,
            num_training_steps=config.steps,
        )
        self.ema = EMAModel(self.parameters, decay=config.ema_decay, foreach=True)
        self.step = 0
        if self.start is not None:
            self._resume(self.start)
        if config.compile:
            self.trainee.compile()

    def run(self) -> Path:
        """Train to the last step, then save the result; returns its folder.

        Raises:
            TrainingError: the loss is not finite; the message names the last good checkpoint.
        """
        config = self.config
        batches = self.batches.from_step(self.step)
        opened = RunLog(config.output, self.step) if self.main else _NoLog()
        with opened as log, StepProgress(self.console, config.steps, self.step) as progress:
            while self.step < config.steps:
                values = self._train_step(batches)
                progress.advance(values)
                if self._due(config.log_every):
                    log.write(self.step, values)
                if self.batches.validation_data is not None and self._due(config.validate_every):
                    log.write(self.step, self.validate())
                if config.sample_prompts and self._due(config.sample_every):
                    self._sample()
                if self._due(config.checkpoint_every):
                    self.save_checkpoint()
        with self._averaged():
            result = self.trainee.save_result(config.output) if self.main else config.output
        self.accelerator.wait_for_everyone()
        self.console.print(f"saved [bold]{result}[/bold]")
        return result

    def _train_step(self, batches: Iterator[Sample]) -> dict[str, float]:
        """One optimiser step over the accumulated forwards."""
        config, forwards = self.config, self.config.gradient_accumulation_steps
        self.model.train()
        totals: dict[str, float] = {}
        for micro in range(forwards):
            generator = self.batches.generator(self.step * forwards + micro)
            with self.accelerator.accumulate(self.model):
                loss, values = self._loss(next(batches), generator)
                if not math.isfinite(values["loss"]):
                    self._stop(f"the loss is {values['loss']} at step {self.step + 1}")
                self.accelerator.backward(loss)
                if self.trainee.settled(self.step):
                    self.trainee.freeze_routers()
                if self.accelerator.sync_gradients:
                    norm = torch.as_tensor(
                        self.accelerator.clip_grad_norm_(self.parameters, config.optimizer.max_grad_norm)
                    ).item()
                    if self.accelerator.scaler is None and not math.isfinite(norm):  # fp16 skips such a step
                        self._stop(f"the gradient norm is {norm} at step {self.step + 1}")
                    totals["grad_norm"] = norm
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + value / forwards
        totals["learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        if not self.optimizer.step_was_skipped:
            self.scheduler.step()
            self.ema.step(self.parameters)
        self.step += 1
        return totals

    def _loss(self, batch: Sample, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Eq. 17 for one batch: the flow-matching loss and, if elastic, lambda times the budget's."""
        batch = self.batches.drop_captions(batch, generator)
        noisy = self.batches.add_noise(batch, generator)
        inputs = self.batches.inputs(batch, noisy.tokens, noisy.sigma)
        self.trainee.draw_routing(len(noisy.sigma), generator, self.step)
        predicted = self.model(**inputs)
        loss = flow_loss(predicted, noisy, self.config.flow).mean()
        values = {"loss": float(loss.detach())}
        with self.accelerator.autocast():  # the teacher is not among what accelerate prepared
            loss = loss + self.trainee.distillation(predicted, inputs, values)
        if budget := self.trainee.budget_loss(self.step):
            loss = loss + budget.total
            values |= budget.logs
        return loss, values

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Flow loss of the averaged weights on fixed batches and noise, overall and by noise level."""
        assert self.batches.validation_data is not None
        self.model.eval()
        self.trainee.default_budget()
        errors: list[Tensor] = []
        sigmas: list[Tensor] = []
        with self._averaged():
            for batch, noisy in self.batches.fixed_batches(
                self.batches.validation_data, self.config.validation_batches, seed=0
            ):
                predicted = self.model(**self.batches.inputs(batch, noisy.tokens, noisy.sigma))
                errors.append(flow_loss(predicted, noisy, self.config.flow).cpu())
                sigmas.append(noisy.sigma.cpu())
        error, sigma = torch.cat(errors), torch.cat(sigmas)
        values = {"validation/loss": float(error.mean())}
        for index in range(SIGMA_BINS):
            low, high = index / SIGMA_BINS, (index + 1) / SIGMA_BINS
            inside = error[(sigma >= low) & (sigma < high)]
            if len(inside):
                values[f"validation/loss_sigma_{low:.2f}_{high:.2f}"] = float(inside.mean())
        if self.trainee.routed:
            values |= self._validate_routes(batch)
        return values

    def _validate_routes(self, batch: Sample) -> dict[str, float]:
        """Routes of one batch in which every sample has the same noise level: do samples differ?"""
        clean = self.family.pack(batch["latents"])
        generator = torch.Generator().manual_seed(0)
        middle = torch.full((len(clean),), 0.5, device=clean.device)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        assert self.trainee.elastic is not None
        with self._averaged():
            self.model(**self.batches.inputs(batch, (clean + noise) / 2, middle))
        return {f"validation/sigma_0.5/{k}": v for k, v in self.trainee.elastic.routing_logs().items()}

    def save_checkpoint(self) -> Path:
        """Write everything needed to go on exactly from here."""
        extra = {"scheduler": self.scheduler.state_dict(), "ema_step": self.ema.optimization_step}
        extra |= {"elastic": self.trainee.training_state(), "config": self.config.model_dump(mode="json")}
        if self.accelerator.scaler is not None:
            extra["scaler"] = self.accelerator.scaler.state_dict()
        target = save_state(
            self.checkpoints, self.step, self.model, self.optimizer.optimizer, self.ema.shadow_params, extra
        )
        if self.main:
            prune(self.checkpoints, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        return target

    def _begun(self) -> dict[str, Any]:
        """What the checkpoint says beside its tensors, checked before anything large is loaded."""
        if self.start is None:
            return {}
        meta = read_meta(self.start)
        refuse_changes(self.config, self.start, meta["step"], meta["extra"].get("config"))
        return meta["extra"]

    def _resume(self, checkpoint: Path) -> None:
        self.step, averaged, extra = load_state(checkpoint, self.model, self.optimizer.optimizer)
        self._resume_schedule(extra["scheduler"])
        self.ema.optimization_step = extra["ema_step"]
        self.ema.shadow_params = [a.to(p.device) for a, p in zip(averaged, self.parameters, strict=True)]
        self.trainee.load_training_state(extra["elastic"])
        if self.accelerator.scaler is not None and "scaler" in extra:
            self.accelerator.scaler.load_state_dict(extra["scaler"])
        self.console.print(f"resuming from {checkpoint.name}")

    def _resume_schedule(self, state: dict[str, Any]) -> None:
        """The schedule's place from a checkpoint, its learning rates from the config: they may have changed."""
        rates = self.scheduler.base_lrs
        self.scheduler.load_state_dict(state | {"base_lrs": rates})
        for group, rate, share in zip(self.optimizer.param_groups, rates, self.scheduler.lr_lambdas, strict=True):
            group |= {"initial_lr": rate, "lr": rate * share(self.scheduler.last_epoch)}

    def _stop(self, reason: str) -> None:
        checkpoint = latest_checkpoint(self.checkpoints)
        last = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was written yet"
        raise TrainingError(f"{reason}; {last}. Lower the learning rate or raise warmup_steps, then run again.")

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights in place of the trained ones; eager, since shapes differ from training's."""
        with torch.compiler.set_stance("force_eager"):
            yield from self._swapped()

    def _swapped(self) -> Iterator[None]:
        if not self.config.ema_decay:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)

    def _sample(self) -> None:
        if self.main:
            self.model.eval()
            self.trainee.pipeline.to(self.accelerator.device)
            with self._averaged(), self.trainee.inference():
                images = self.family.generate(self.config.sample_prompts, self.config.seed, self.config.data.resolution)
            self.trainee.park_encoders()
            save_grid(images, self.config.output / "samples" / f"step-{self.step:07d}.png")
        self.accelerator.wait_for_everyone()

    def _importance_batches(self) -> Iterator[tuple[dict[str, Any], NoisyBatch]]:
        """Transformer inputs of a few training batches and what they were made from, the same on every rank."""
        few = self.batches.fixed_batches(self.batches.train_data, self.config.importance_batches, self.config.seed + 1)
        return ((self.batches.inputs(batch, noisy.tokens, noisy.sigma), noisy) for batch, noisy in few)

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps


class _NoLog:
    """The log of a rank that writes none."""

    def __enter__(self) -> "_NoLog":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Nothing."""
