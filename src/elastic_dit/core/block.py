"""Algorithm 1, and its differentiable form: what happens at one block.

B batch, L blocks, S number of widths. A block is any callable that updates its streams; which rows of
the batch it runs on and how wide its MLP is are said at the call.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from elastic_dit.core.cache import FeatureBank, Streams, in_band, put, rows_of, take
from elastic_dit.core.gating import gated_output, is_open, keep_probability, straight_through_gate
from elastic_dit.core.router import RouterOutput
from elastic_dit.core.width import width_probabilities

Rows = Tensor | None
"""Indices of batch rows, (b,); None is all of them."""


class Decision(NamedTuple):
    """What happens to each sample at one block; host values, one per sample."""

    keep: list[bool]
    """Open: the block runs or its residual is reused. False skips, whatever the rest says."""
    reuse: list[bool]
    """Add the stored residual, if Algorithm 1 allows it, instead of running."""
    width: list[float]
    """Width ratio of the MLP where the block runs."""
    keep_prob: list[float]
    """p; 1 or 0 where no router spoke."""
    store: list[bool]
    """Store the residual where the block runs: a later step may want it."""

    @property
    def uniform(self) -> bool:
        """Whether all samples go the same way, and it neither comes from a stored residual nor stores one."""
        alike = self.keep.count(self.keep[0]) == len(self.keep) and self.width.count(self.width[0]) == len(self.width)
        return alike and True not in self.reuse and True not in self.store


def decide(
    keep_prob: Sequence[float],
    width_logits: Sequence[Sequence[float]],
    tau: float,
    delta: float,
    near: float,
    ratios: Sequence[float],
) -> Decision:
    """Eq. 10, 12 and the band of Algorithm 1 for a whole batch, from values on the host.

    Args:
        keep_prob: p, of each of the B samples.
        width_logits: u, likewise, S each.
        tau: the threshold.
        delta: width of the band above it in which residuals are reused.
        near: width of the wider band in which they are stored.
        ratios: the S widths.
    """
    return Decision(
        keep=[is_open(p, tau) for p in keep_prob],
        reuse=[in_band(p, tau, delta) for p in keep_prob],
        # argmax q is argmax u: softmax keeps the order
        width=[ratios[logits.index(max(logits))] for logits in width_logits],
        keep_prob=list(keep_prob),
        store=[in_band(p, tau, near) for p in keep_prob],
    )


def run_block(
    x: Streams,
    block: Callable[[Streams, Rows, Sequence[float]], Streams],
    decision: Decision,
    bank: FeatureBank,
    step: int,
) -> tuple[Streams, Decision]:
    """Algorithm 1 at one block, for a batch in which every sample goes its own way.

    Args:
        x: the block's input streams, each (B, T, D).
        block: B^i, given the rows' streams, which rows they are, and each one's MLP width ratio, ascending.
        decision: what the router (or a plan) wants.
        bank: C^i.
        step: index of the denoising step.

    Returns:
        The output streams, and the decision as it was carried out: `reuse` is true only where a stored
        residual was really used.
    """
    batch = range(len(decision.keep))
    reused = [
        d_keep and d_reuse and bank.can_reuse(row, step)
        for row, d_keep, d_reuse in zip(batch, decision.keep, decision.reuse, strict=True)
    ]
    ran = [row for row in batch if decision.keep[row] and not reused[row]]
    ran.sort(key=lambda row: decision.width[row])  # rows of one width lie side by side
    again = [row for row in batch if reused[row]]
    skipped = [row for row in batch if not decision.keep[row]]

    def carry_out(group: list[int], before: Streams, rows: Rows) -> Streams:
        if group is skipped:
            return before
        if group is again:
            return bank.reuse(again, before)  # Eq. 19
        after = block(before, rows, [decision.width[row] for row in ran])
        _store(bank, ran, decision, before, after, step)
        return after

    taken = decision._replace(reuse=reused)
    groups = [group for group in (ran, again, skipped) if group]
    if groups == [list(batch)]:
        return carry_out(groups[0], x, None), taken
    out = tuple(None if s is None else torch.empty_like(s) for s in x)
    for group in groups:
        rows = _rows(group, x)
        before = take(x, rows)
        after = carry_out(group, before, rows)
        # a stream that the block does not give back (the text in SD3's last) stays as it was
        put(out, rows, tuple(b if a is None else a for b, a in zip(before, after, strict=True)))
    return out, taken


def train_block(x: Streams, block: Callable[[Streams, Tensor], Streams], output: RouterOutput, tau: float) -> Streams:
    """Eq. 8 with Eq. 7's gate and Eq. 13's masks: every block runs, decisions are masks.

    Args:
        x: the block's input streams, each (B, T, D).
        block: B^i, given the streams and the width probabilities q (B, S) its MLPs are masked by.
        output: of the block's router.
        tau: the threshold.
    """
    gate = straight_through_gate(keep_probability(output.gate_logit), tau)  # Eq. 7
    after = block(x, width_probabilities(output.width_logits))  # Eq. 13
    return tuple(
        None if b is None or a is None else gated_output(b, a, gate)  # Eq. 8
        for b, a in zip(x, after, strict=True)
    )


def _store(bank: FeatureBank, rows: list[int], decision: Decision, before: Streams, after: Streams, step: int) -> None:
    """Eq. 18 for the rows whose residual may be wanted; the others' older ones are out of date."""
    for index, row in enumerate(rows if bank.max_reuse else ()):
        if decision.store[row]:
            own = slice(index, index + 1)
            bank.store(row, rows_of(before, own), rows_of(after, own), step)
        else:
            bank.drop(row)


def _rows(rows: Sequence[int], x: Streams) -> Tensor:
    device = next(s.device for s in x if s is not None)
    return torch.tensor(rows).to(device, non_blocking=True)  # not `device=`: that would wait for the GPU
