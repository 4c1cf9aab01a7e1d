"""The data of a run: samples in their order, without some captions, with noise, as the transformer takes them."""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from elastic_dit.training.config import TrainConfig
from elastic_dit.training.data.cache import EncodedDataset, Sample, StepBatches, encode
from elastic_dit.training.families.base import Family
from elastic_dit.training.flow import NoisyBatch, draw


class Batches:
    """Encoded samples, on this process' device; B samples of a batch.

    Noise, noise levels and caption dropout of a forward are drawn from a generator seeded by (seed,
    forward, rank), and the data order is a function of the same and of the number of processes: where that stays, a
    checkpoint needs no random state.

    Args:
        config: of the run.
        family: encodes, packs and says what the transformer is given.
        accelerator: the device, and which of how many processes this is.
        quiet: no progress bar of the encoding.
    """

    def __init__(self, config: TrainConfig, family: Family, accelerator: Accelerator, *, quiet: bool) -> None:
        self.config, self.family, self.accelerator = config, family, accelerator
        self._quiet = quiet
        self.train_data = self._encoded(config.data.path)
        self.validation_data = self._encoded(config.data.validation) if config.data.validation else None
        self._empty: Sample = self.train_data.empty_text(accelerator.device)

    def from_step(self, step: int) -> Iterator[Sample]:
        """This rank's batches from an optimiser step on, without an end."""
        order = StepBatches(
            len(self.train_data),
            self.config.batch_size,
            seed=self.config.seed,
            start=step * self.config.gradient_accumulation_steps,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        return (self.train_data.batch(indices, self.accelerator.device) for indices in order)

    def fixed_batches(self, data: EncodedDataset, count: int, seed: int) -> Iterator[tuple[Sample, NoisyBatch]]:
        """The first `count` batches in the order of `seed`; batch i has the same noise on every rank, at every call."""
        order = StepBatches(len(data), self.config.batch_size, seed=seed)
        for forward, indices in zip(range(count), order, strict=False):
            batch = data.batch(indices, self.accelerator.device)
            yield batch, self.add_noise(batch, torch.Generator().manual_seed(forward))

    def add_noise(self, batch: Sample, generator: torch.Generator) -> NoisyBatch:
        """A batch's image tokens with noise on them."""
        return draw(self.family.pack(batch["latents"]), self.config.flow, generator)

    def drop_captions(self, batch: Sample, generator: torch.Generator) -> Sample:
        """The batch with the empty caption in place of a share of them."""
        count = len(batch["latents"])
        dropped = torch.rand(count, generator=generator) < self.config.flow.caption_dropout
        dropped = dropped.to(self.accelerator.device)
        return batch | {
            name: torch.where(dropped.view(-1, *[1] * empty.ndim), empty, batch[name])
            for name, empty in self._empty.items()
        }

    def inputs(self, batch: Sample, tokens: Tensor, sigma: Tensor) -> dict[str, Any]:
        """What the transformer is given: image tokens (B, N, C) at noise levels (B,) in 0..1, and the batch's texts."""
        text = {name.removeprefix("text."): value for name, value in batch.items() if name.startswith("text.")}
        return self.family.inputs(tokens, sigma, text, batch["latents"].shape)

    def generator(self, forward: int) -> torch.Generator:
        """For all that is random in a forward of this rank."""
        seed = (self.config.seed * 1_000_003 + forward) * 1_009 + self.accelerator.process_index
        return torch.Generator().manual_seed(seed % 2**63)

    def _encoded(self, path: str) -> EncodedDataset:
        with self.accelerator.main_process_first():
            return encode(self.family, self.config.data, path, quiet=self._quiet)
