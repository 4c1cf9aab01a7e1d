"""What the engine may cost besides arithmetic: waiting for the device, and memory that stays."""

import gc

import numpy as np
import pytest
import torch
from torch import Tensor

from elastic_dit import Plan
from elastic_dit.engine.routers import OnItsWay
from tiny import Tiny, TinyElastic, mixed_config, run

WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal")
"""Operators that bring a value to the host."""
STEPS = 3


@pytest.fixture
def fresh_flux(tiny_flux: Tiny) -> TinyElastic:
    return TinyElastic(tiny_flux)


def waits(tiny: TinyElastic, batch: int) -> int:
    """How often the last step of a run waits for a value, beyond one look at the timestep."""
    *first, last = tiny.steps(batch, STEPS)
    run(tiny.transformer, first)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
        tiny.transformer(**last)
    timestep = 1  # the run and its step are known by it
    return sum(event.count for event in profile.key_averages() if event.key in WAITS) - timestep


@pytest.mark.parametrize("batch", [1, 4])
def test_one_value_a_block_reaches_the_host(
    fresh_flux: TinyElastic, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[torch.Size] = []
    wait = OnItsWay.wait

    def waited(self: OnItsWay) -> Tensor:
        fetched.append(wait(self).shape)
        return wait(self)

    monkeypatch.setattr(OnItsWay, "wait", waited)
    assert waits(fresh_flux, batch) == 0
    widths = len(fresh_flux.elastic.config.width_ratios)
    assert fetched == [torch.Size([batch, 1 + widths])] * fresh_flux.blocks * STEPS


def test_routers_of_the_timestep_wait_once_a_step(tiny_flux: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = TinyElastic(tiny_flux, mixed_config(router_input="timestep"))
    fetched: list[torch.Size] = []
    cpu = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self: fetched.append(self.shape) or cpu(self))
    assert waits(tiny, 4) == 0
    widths = len(tiny.elastic.config.width_ratios)
    assert fetched == [torch.Size([tiny.blocks, 4, 1 + widths])] * STEPS


def test_a_plan_waits_for_nothing(fresh_flux: TinyElastic, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    shape = (STEPS, fresh_flux.blocks, 4)
    fresh_flux.elastic.force(Plan(random.random(shape) < 0.7, random.random(shape) < 0.3))
    monkeypatch.setattr(Tensor, "tolist", lambda self: pytest.fail("a plan needs no value from the device"))
    assert waits(fresh_flux, 4) == 0


def test_fifty_runs_leave_nothing_behind(fresh_flux: TinyElastic) -> None:
    """The bytes of all live tensors after the third run and after the fiftieth."""

    def bytes_after(runs: int) -> int:
        for seed in range(runs):
            run(fresh_flux.transformer, fresh_flux.steps(2, STEPS, seed))
            fresh_flux.elastic.reset()
        gc.collect()
        tensors = [value for value in gc.get_objects() if type(value) in (Tensor, torch.nn.Parameter)]  # no fake ones
        return sum({tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in tensors}.values())

    early = bytes_after(3)
    assert bytes_after(47) <= early  # less, where something of another test went
