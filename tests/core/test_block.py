"""Algorithm 1 at one block, and its differentiable form, on a toy block whose result is known."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from elastic_dit.core.block import Decision, Rows, decide, run_block, train_block
from elastic_dit.core.cache import FeatureBank, Streams
from elastic_dit.core.router import RouterOutput

RATIOS = torch.tensor([0.25, 0.5, 0.75, 1.0])


class Toy:
    """x -> 2x + width on the image; the text is doubled. Remembers which rows it ran on."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int] | None, list[float]]] = []

    def __call__(self, x: Streams, rows: Rows, widths: Sequence[float]) -> Streams:
        self.calls.append((None if rows is None else rows.tolist(), list(widths)))
        image, text = x
        assert image is not None
        return 2 * image + torch.tensor(widths).view(-1, 1, 1), None if text is None else 2 * text


def decision(keep: list[int], reuse: list[int], width: list[float]) -> Decision:
    return Decision(
        [bool(k) for k in keep], [bool(r) for r in reuse], width, [float(k) for k in keep], [True] * len(keep)
    )


def test_rows_run_once_by_width_and_are_put_back() -> None:
    x, block = (torch.randn(5, 2, 3), torch.randn(5, 1, 3)), Toy()
    wanted = decision([1, 0, 1, 1, 1], [0, 0, 0, 0, 0], [0.5, 1, 1, 0.5, 0.25])
    out, taken = run_block(x, block, wanted, FeatureBank(3), step=0)
    assert block.calls == [([4, 0, 3, 2], [0.25, 0.5, 0.5, 1.0])]
    added = torch.tensor([0.5, 0, 1.0, 0.5, 0.25]).view(-1, 1, 1)
    factor = torch.tensor([2.0, 1, 2, 2, 2]).view(-1, 1, 1)
    assert torch.equal(out[0], factor * x[0] + added)
    assert torch.equal(out[1], factor * x[1])
    assert taken == wanted


def test_an_equal_batch_runs_whole() -> None:
    x, block = (torch.randn(3, 2, 3), None), Toy()
    run_block(x, block, decision([1] * 3, [0] * 3, [0.5] * 3), FeatureBank(0), step=0)
    assert block.calls == [(None, [0.5] * 3)]


def test_nothing_runs_where_all_is_skipped() -> None:
    x, block = (torch.randn(3, 2, 3), None), Toy()
    out, _ = run_block(x, block, decision([0] * 3, [1] * 3, [0.5] * 3), FeatureBank(3), step=0)
    assert block.calls == []
    assert out[0] is x[0]


def test_reuse_adds_the_stored_residual_exactly_k_times() -> None:
    """Recomputing resets the count; an empty bank runs the block."""
    block, bank, reuse = Toy(), FeatureBank(max_reuse=2), decision([1], [1], [1.0])
    first = (torch.randn(1, 2, 3), torch.randn(1, 1, 3))
    out, taken = run_block(first, block, reuse, bank, step=0)
    assert taken.reuse == [False]
    stored = [b - a for a, b in zip(first, out, strict=True)]
    history = []
    for step in range(1, 7):
        x = (torch.randn(1, 2, 3), torch.randn(1, 1, 3))
        out, taken = run_block(x, block, reuse, bank, step)
        history.append(taken.reuse[0])
        if taken.reuse[0]:
            for before, after, residual in zip(x, out, stored, strict=True):
                assert torch.equal(after, before + residual)
        else:
            stored = [b - a for a, b in zip(x, out, strict=True)]
    assert history == [True, True, False, True, True, False]
    assert len(block.calls) == 3


def test_a_skip_neither_uses_nor_forgets_a_residual() -> None:
    bank, x = FeatureBank(max_reuse=1), (torch.randn(1, 2, 3), None)
    run_block(x, Toy(), decision([1], [0], [1.0]), bank, step=0)
    run_block(x, Toy(), decision([0], [1], [1.0]), bank, step=1)
    _, taken = run_block(x, Toy(), decision([1], [1], [1.0]), bank, step=2)
    assert taken.reuse == [True]


def test_a_missing_text_output_leaves_the_text() -> None:
    """SD3's last block returns no text."""
    x = (torch.randn(2, 2, 3), torch.randn(2, 1, 3))

    def block(given: Streams, rows: Rows, widths: Sequence[float]) -> Streams:
        assert given[0] is not None
        return given[0] + 1, None

    bank = FeatureBank(2)
    out, _ = run_block(x, block, decision([1, 0], [0, 0], [1.0, 1.0]), bank, step=0)
    assert torch.equal(out[0], x[0] + torch.tensor([1.0, 0]).view(-1, 1, 1))
    assert torch.equal(out[1], x[1])
    out, taken = run_block(x, block, decision([1, 0], [1, 0], [1.0, 1.0]), bank, step=1)
    assert taken.reuse == [True, False]
    torch.testing.assert_close(out[0], x[0] + torch.tensor([1.0, 0]).view(-1, 1, 1))
    assert torch.equal(out[1], x[1])


def test_a_residual_that_is_not_stored_takes_an_older_one_with_it() -> None:
    bank, x, run = FeatureBank(max_reuse=9), (torch.randn(2, 2, 3), None), decision([1, 1], [0, 0], [1.0, 1.0])
    run_block(x, Toy(), run, bank, step=0)
    run_block(x, Toy(), run._replace(store=[True, False]), bank, step=1)
    assert [bank.can_reuse(row, 2) for row in (0, 1)] == [True, False]


def test_all_rows_reused_at_once() -> None:
    bank, x, block = FeatureBank(max_reuse=9), (torch.randn(2, 2, 3), torch.randn(2, 1, 3)), Toy()
    first, _ = run_block(x, block, decision([1, 1], [0, 0], [0.5, 0.5]), bank, step=0)
    again, taken = run_block(x, block, decision([1, 1], [1, 1], [0.5, 0.5]), bank, step=1)
    assert taken.reuse == [True, True]
    assert len(block.calls) == 1
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b)


def test_decide() -> None:
    p = torch.tensor([0.2, 0.5, 0.55, 0.9])
    output = RouterOutput(torch.logit(p.double()).float(), torch.eye(4)[[0, 3, 1, 2]])
    result = decide(
        output.gate_logit.sigmoid().tolist(), output.width_logits.tolist(), tau=0.4, delta=0.2, near=0.55, ratios=RATIOS
    )
    assert result.keep == [False, True, True, True]
    assert result.reuse == [False, True, True, False]
    assert result.width == [0.25, 1.0, 0.5, 0.75]
    assert result.store == [False, True, True, True]
    assert result.keep_prob == pytest.approx(p.tolist())


def test_train_block() -> None:
    """Eq. 8 value by value, and dL/dl = <dL/dx_out, B(x) - x> p (1 - p)."""
    x = (torch.randn(3, 2, 4), torch.randn(3, 1, 4))
    logit = torch.tensor([-1.0, 0.2, 2.0], requires_grad=True)
    weight = (torch.randn(3, 2, 4), torch.randn(3, 1, 4))

    def block(given: Streams, probs: Tensor) -> Streams:
        assert probs.shape == (3, 4)
        return tuple(None if s is None else s.sin() for s in given)

    out = train_block(x, block, RouterOutput(logit, torch.zeros(3, 4)), tau=0.5)
    for before, after in zip(x, out, strict=True):
        assert torch.equal(after[0], before[0])
        torch.testing.assert_close(after[1:], before[1:].sin())
    sum((o * w).sum() for o, w in zip(out, weight, strict=True)).backward()
    p = 1 / (1 + torch.exp(-logit.detach()))
    moved = sum((w * (a.sin() - a)).sum(dim=(1, 2)) for a, w in zip(x, weight, strict=True))
    torch.testing.assert_close(logit.grad, moved * p * (1 - p))
