"""Peers are tuned to the elastic model's FLOPs, and those that do not fit are left out with the reason."""

import pytest
import torch

from elastic_dit.baselines import Applied, Baseline, Task, baselines
from elastic_dit.bench.lane import Lane
from elastic_dit.bench.peers import Tuner, peers
from elastic_dit.bench.sizes import Size
from elastic_dit.bench.trajectory import Trajectory
from elastic_dit.errors import BackboneError, UnknownNameError


@pytest.fixture
def lane(tiny_size: Size) -> Lane:
    return Lane(tiny_size, torch.device("cpu"), torch.float32)


def skipping(settings: tuple[float, ...], *, continuous: bool = False) -> Baseline:
    def apply(transformer: object, setting: float, task: Task) -> Applied:
        return Applied(lambda: None, steps=range(round(task.steps * setting)))

    return Baseline("skipping", "", "", "share of the steps", settings, apply, continuous)


@pytest.mark.parametrize(("wanted", "setting"), [(0.95, 1.0), (0.7, 0.75), (0.3, 0.25), (0.01, 0.25)])
def test_the_setting_nearest_in_flops_is_chosen(lane: Lane, wanted: float, setting: float) -> None:
    tuner = Tuner(lane, Trajectory(lane.size, lane.dense, 1, 4))
    dense = tuner.flops(lane.dense_contender())
    contender, chosen = tuner.tune(skipping((1.0, 0.75, 0.5, 0.25)), round(wanted * dense))
    assert chosen == setting
    assert contender.steps is not None
    assert len(contender.steps) == 4 * setting


def test_a_continuous_setting_is_refined_between_two_listed_ones(lane: Lane) -> None:
    tuner = Tuner(lane, Trajectory(lane.size, lane.dense, 1, 16))
    dense = tuner.flops(lane.dense_contender())
    contender, chosen = tuner.tune(skipping((1.0, 0.5, 0.25), continuous=True), round(11 / 16 * dense))
    assert contender.steps == range(11)
    assert 0.5 < chosen < 1


def test_a_record_of_peers(lane: Lane) -> None:
    names = ["fewer-steps", "first-block-cache", "static-prune"]
    record = peers(lane, names, batch=1, steps=8, repeats=1, compiled=False)
    rows = {row["name"]: row for row in record.results["rows"]}
    assert list(rows) == ["dense", "elastic", "elastic, frozen", *names]
    assert record.results["left_out"] == []
    elastic = rows["elastic"]["flops_share"]
    # the twelve and more settings of fewer-steps are rounded to whole steps of eight
    assert rows["fewer-steps"]["flops_share"] == pytest.approx(elastic, abs=0.5 / 8)
    assert rows["fewer-steps"]["setting_name"] == "share of the steps left out"
    assert 0.02 <= rows["first-block-cache"]["setting"] <= 1.2


def test_a_peer_that_does_not_fit_is_left_out(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Applied:
        raise BackboneError("no such blocks")

    refusing = Baseline("refusing", "", "", "", (0.0,), refuse)
    monkeypatch.setitem(baselines._all(), "refusing", refusing)
    record = peers(lane, ["refusing"], batch=1, steps=4, repeats=1, compiled=False)
    assert record.results["left_out"] == [{"name": "refusing", "why": "no such blocks"}]


def test_an_unknown_peer_is_refused(lane: Lane) -> None:
    with pytest.raises(UnknownNameError, match="teacache"):
        peers(lane, ["teecache"], batch=1, steps=4, repeats=1, compiled=False)


@pytest.mark.slow
def test_compiled_rows_stand_beside_the_plain_dense_model(lane: Lane) -> None:
    record = peers(lane, ["compiled"], batch=1, steps=3, repeats=1, compiled=True)
    rows = {row["name"]: row for row in record.results["rows"]}
    assert rows["compiled"]["reference"] == rows["elastic, compiled"]["reference"] == "dense"
    assert rows["compiled"]["flops_share"] == 1
    assert rows["elastic, compiled"]["flops_share"] == pytest.approx(rows["elastic"]["flops_share"])
