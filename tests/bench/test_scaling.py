"""One point a value: batch, tokens, blocks and steps change one at a time. And the cost of training."""

from dataclasses import replace

import pytest
import torch

from elastic_dit.bench.lane import Lane
from elastic_dit.bench.scaling import scaling
from elastic_dit.bench.sizes import Size
from elastic_dit.bench.training import Trainee, memory, training
from small import small_flux


def test_a_point_for_every_value(tiny_size: Size) -> None:
    axes = {"batch": [1, 3], "tokens": [16, 64], "blocks": [7], "steps": [2]}
    record = scaling(tiny_size, axes, torch.device("cpu"), torch.float32, steps=4, repeats=1)  # type: ignore[arg-type]
    points = record.results["points"]
    assert [(point["axis"], point["value"]) for point in points] == [
        (a, v) for a, values in axes.items() for v in values
    ]
    for point in points:
        names = [row["name"] for row in point["rows"]]
        assert names == ["dense", "all open", "skip + width + cache"]
        for row in point["rows"]:
            raw = record.samples[f"{point['axis']}_{point['value']}_{row['name']}_seconds"]
            assert len(raw) == (2 if point["axis"] == "steps" else 4)
    assert tiny_size.tokens == 16


def test_training_costs(tiny_size: Size) -> None:
    record = training(Lane(tiny_size, torch.device("cpu"), torch.float32), batch=2, repeats=2)
    rows = {row["name"]: row for row in record.results["rows"]}
    assert list(rows) == ["dense", "elastic", "dense, checkpointing", "elastic, checkpointing"]
    assert rows["elastic, checkpointing"]["reference"] == "dense, checkpointing"
    assert rows["dense"]["ratio"]["median"] == rows["dense"]["memory_ratio"] == 1
    # checkpointing keeps less, in both
    for kind in ("dense", "elastic"):
        assert rows[f"{kind}, checkpointing"]["saved_bytes"] < 0.5 * rows[kind]["saved_bytes"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_elastic_step_keeps_hardly_more_than_a_dense_one(checkpointing: bool) -> None:
    """At a size where activations are most of the memory. The bar is 1.10."""
    size = replace(small_flux(heads=8), tokens=256, text=32)
    lane = Lane(size, torch.device("cpu"), torch.float32)
    dense, elastic = (Trainee(lane, 1, elastic=e, checkpointing=checkpointing) for e in (False, True))
    (dense_peak, dense_held), (peak, held) = (memory(each) for each in (dense, elastic))
    assert held < 1.10 * dense_held
    assert peak < 1.10 * dense_peak
