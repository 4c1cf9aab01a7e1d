"""Algorithm 1, and its differentiable form: what happens at one block.

B batch, L blocks, S number of widths. A block is any callable that updates its streams; which rows of
the batch it runs on and how wide its MLP is are said at the call.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from elastic_dit.core.cache import FeatureBank, Streams, add_residual, in_band, put, residual_of, take
from elastic_dit.core.gating import gated_output, is_open, keep_probability, straight_through_gate
from elastic_dit.core.router import RouterOutput
from elastic_dit.core.width import selected_width, width_probabilities

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


def decide(output: RouterOutput, tau: float, delta: float, ratios: Tensor) -> Decision:
    """Eq. 10, 12 and the band of Algorithm 1, for the whole batch in one host synchronisation."""
    p = keep_probability(output.gate_logit)
    width = selected_width(width_probabilities(output.width_logits), ratios)
    packed = torch.stack([is_open(p, tau), in_band(p, tau, delta), width, p])  # (4, B)
    values = cast(list[list[float]], packed.tolist())  # pyright: ignore[reportUnknownMemberType]
    keeps, reuses, widths, probs = values
    return Decision([bool(k) for k in keeps], [bool(r) for r in reuses], widths, probs)


def run_block(
    x: Streams,
    block: Callable[[Streams, Rows, float], Streams],
    decision: Decision,
    bank: FeatureBank,
    step: int,
) -> tuple[Streams, Decision]:
    """Algorithm 1 at one block, for a batch in which every sample goes its own way.

    Args:
        x: the block's input streams, each (B, T, D).
        block: B^i, given the rows' streams, which rows they are, and the MLP's width ratio.
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
    out = x
    for width in sorted(set(decision.width)):
        group = [row for row in batch if decision.keep[row] and not reused[row] and decision.width[row] == width]
        if not group:
            continue
        rows = _rows(group, x) if len(group) < len(batch) else None
        before = x if rows is None else take(x, rows)
        after = block(before, rows, width)
        out = after if rows is None else put(out, rows, after)
        if bank.max_reuse:
            residual = residual_of(before, after)  # Eq. 18
            for index, row in enumerate(group):
                bank.store(row, tuple(None if r is None else r[index : index + 1] for r in residual), step)
    for row in batch:
        if reused[row]:
            rows = _rows([row], x)
            out = put(out, rows, add_residual(take(x, rows), bank.reuse(row)))  # Eq. 19
    return out, decision._replace(reuse=reused)


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


def _rows(rows: Sequence[int], x: Streams) -> Tensor:
    device = next(s.device for s in x if s is not None)
    return torch.tensor(rows, device=device)
