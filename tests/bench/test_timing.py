import time

import pytest
import torch
from torch import nn

from elastic_dit.timing import ForwardTimer, spread


class Slow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, pause: float) -> torch.Tensor:
        time.sleep(pause)
        return self.weight


def test_each_forward_is_timed_and_nothing_between_them() -> None:
    module, seen = Slow(), []
    with ForwardTimer(module, lambda: seen.append(len(timer.seconds))) as timer:
        module(0.02)
        time.sleep(0.1)
        module(0.04)
    module(0.0)  # after the timer has left
    assert seen == [1, 2]
    assert len(timer.seconds) == 2
    assert 0.02 <= timer.seconds[0] < 0.06
    assert 0.04 <= timer.seconds[1] < 0.08
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_the_timer_leaves_after_an_error() -> None:
    module = Slow()
    with pytest.raises(TypeError), ForwardTimer(module):
        module("no number")
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_spread_is_median_lowest_highest() -> None:
    assert spread([5.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 5.0}
    assert spread([4.0]) == {"median": 4.0, "min": 4.0, "max": 4.0}
