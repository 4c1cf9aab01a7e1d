"""TinyFusion (arXiv 2412.01199): learns which N of every M blocks stay, and how well the rest can recover.

Blocks are split into groups of up to M. For each group one of its (M choose N) masks is drawn by Gumbel-softmax,
straight through, while a LoRA learns beside the masks what fine-tuning could mend. The likeliest masks win; the LoRA
is thrown away. The paper's temperatures, rank and ratio of the learning rates.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch import Tensor, nn

from elastic_dit.core.gating import gated_output
from elastic_dit.engine.site import Site
from elastic_dit.pruning.base import Pruning, Route, Subject, fit, prunings
from elastic_dit.training.config import FlowConfig
from elastic_dit.training.flow import flow_loss

GROUP = 4
STEPS = 100
LEARNING_RATE = 2e-3
GATE_RATE = 10
"""Times the LoRA's learning rate."""
TEMPERATURES = (4.0, 0.1)
RANK = 8
NAME = "tinyfusion"


class Groups(nn.Module):
    """The masks of every group of blocks, and how likely each is.

    Args:
        sizes: M of each group.
        kept: N of each group.
    """

    def __init__(self, sizes: list[int], kept: list[int]) -> None:
        super().__init__()
        self.masks = [_masks(size, keep) for size, keep in zip(sizes, kept, strict=True)]  # (choices, M)
        self.logits = nn.ParameterList(nn.Parameter(torch.zeros(len(masks))) for masks in self.masks)

    def sample(self, temperature: float) -> Tensor:
        """A gate for every block (L,), 0 or 1, with the gradient of the soft choice."""
        chosen = [F.gumbel_softmax(logits, tau=temperature, hard=True) for logits in self.logits]
        return torch.cat([choice @ masks.to(choice) for choice, masks in zip(chosen, self.masks, strict=True)])

    def probabilities(self) -> Tensor:
        """Of each block to stay, (L,)."""
        pairs = zip(self.logits, self.masks, strict=True)
        return torch.cat([logits.detach().softmax(0) @ masks.to(logits) for logits, masks in pairs])

    def best(self) -> Tensor:
        """The likeliest mask of every group, (L,) bool."""
        return torch.cat([m[int(logits.argmax())] for logits, m in zip(self.logits, self.masks, strict=True)]).bool()


def _masks(size: int, keep: int) -> Tensor:
    choices = list(combinations(range(size), keep))
    masks = torch.zeros(len(choices), size)
    for row, kept in zip(masks, choices, strict=True):
        row[list(kept)] = 1
    return masks


def split(blocks: list[int], keep: int) -> tuple[list[int], list[int]]:
    """Sizes M of groups within each block list, and how many N of each stay, `keep` in all, evenly spread."""
    sizes: list[int] = []
    for length in blocks:
        groups = -(-length // GROUP)
        sizes += [length * (i + 1) // groups - length * i // groups for i in range(groups)]
    total, kept, done = sum(sizes), list[int](), 0
    for size in sizes:
        done += size
        kept.append(round(keep * done / total) - sum(kept))
    return sizes, kept


def _choose(subject: Subject, budget: float) -> Route:
    costs, sites = subject.costs, subject.elastic.sites
    lists = [site.declared.path for site in sites]
    keep = sum(1 for width in fit(range(len(costs)), costs, budget) if width)
    groups = Groups(*split([lists.count(path) for path in dict.fromkeys(lists)], keep))
    _learn(subject, groups)
    stays, likely = groups.best(), groups.probabilities()
    order = sorted(range(len(costs)), key=lambda index: (bool(stays[index]), float(likely[index])), reverse=True)
    return fit(order, costs, budget)


def _learn(subject: Subject, groups: Groups) -> None:
    torch.manual_seed(subject.seed)
    elastic, transformer = subject.elastic, subject.elastic.transformer
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear"), adapter_name=NAME)
    elastic.train_mode()
    lora = [p for p in transformer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": lora, "lr": LEARNING_RATE}, {"params": groups.parameters(), "lr": GATE_RATE * LEARNING_RATE}],
        weight_decay=0.0,
    )
    first, last = TEMPERATURES
    try:
        for step in range(STEPS):
            subject.progress("learning masks", step, STEPS)
            inputs, noisy = subject.batches[step % len(subject.batches)]
            gates = groups.sample(first + (last - first) * step / max(1, STEPS - 1))
            with _gated(elastic.sites, gates):
                loss = flow_loss(transformer(**inputs, return_dict=False)[0], noisy, FlowConfig()).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    finally:
        elastic.eval_mode()
        transformer.delete_adapters(NAME)
        transformer.unload_lora()


@contextmanager
def _gated(sites: list[Site], gates: Tensor) -> Iterator[None]:
    """Every block's output as in Eq. 8, with one gate for all samples."""

    def gate(site: Site, value: Tensor) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            call = site.call(args, kwargs)
            after = output if isinstance(output, tuple) else (output,)
            pairs = zip(call.x, after, strict=True)
            return call.output(tuple(b if b is None else gated_output(b, a, value) for b, a in pairs))

        return site.block.register_forward_hook(hook, with_kwargs=True)

    handles = [gate(site, gates[site.index]) for site in sites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


prunings.add(
    "tinyfusion",
    Pruning(
        name="tinyfusion",
        about="Learns which N of every M blocks stay, with a LoRA that stands for later fine-tuning.",
        source="TinyFusion, arXiv 2412.01199; written after the paper",
        choose=_choose,
    ),
)
