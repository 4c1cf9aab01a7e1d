"""The speed table: every variant, counted FLOPs, compiled rows beside the compiled dense model, the timeline."""

import pytest
import torch

from elastic_dit.bench.lane import AHEAD, LATE, Lane
from elastic_dit.bench.sizes import SIZES, Size, size
from elastic_dit.bench.speed import FROZEN, speed
from elastic_dit.engine.plan import Plan
from elastic_dit.errors import UnknownNameError


@pytest.fixture
def lane(tiny_size: Size) -> Lane:
    return Lane(tiny_size, torch.device("cpu"), torch.float32)


def test_a_record_of_every_variant(lane: Lane) -> None:
    shown: list[tuple[str, int, int]] = []
    record = speed(lane, batch=3, steps=4, repeats=2, compiled=False, progress=lambda *state: shown.append(state))
    rows = {row["name"]: row for row in record.results["rows"]}
    routed = ["all open", "skip", "skip + width", "skip + width + cache"]
    earlier = [f"{name}{how}" for name in (routed[0], routed[3]) for how in (AHEAD, LATE)]
    assert set(rows) == {"dense", *routed, *earlier, FROZEN}
    shares = [rows[name]["flops_share"] for name in (*routed, FROZEN)]
    assert rows["dense"]["flops_share"] == 1
    assert shares[0] > 1  # dense, and the routers
    assert shares == sorted(shares, reverse=True)
    for name in earlier:  # when a router is asked does not change what it costs
        assert rows[name]["flops_share"] == pytest.approx(rows[name.split(", ")[0]]["flops_share"])
    assert rows["the same, frozen"]["reuse_rate"] == rows["skip + width + cache"]["reuse_rate"] > 0
    assert set(record.samples) == {f"{name}_{what}" for name in rows for what in ("seconds", "beside_seconds")}
    assert all(len(values) == 2 * 4 for values in record.samples.values())
    for row in rows.values():
        assert row["realised"]["median"] * row["predicted_speedup"] == pytest.approx(row["speedup"]["median"])
        assert row["ratio"]["median"] * row["speedup"]["median"] == pytest.approx(1)
    assert shown[-1][1] < shown[-1][2] == 4 * 4


def test_flops_are_those_that_the_trace_counts(lane: Lane) -> None:
    """Two ways to count: torch's counter on what runs, and the trace's sum of measured blocks."""
    record = speed(lane, batch=1, steps=4, repeats=1, compiled=False)
    dense, *rows = record.results["rows"]
    for row in rows:
        trace = lane.elastic[row["name"]].trace
        # the counter also sees what is outside of the blocks: embeddings and the last layer
        outside = 1 - row["flops_share"] - (1 - trace.flops_share)
        assert abs(outside) < 0.12 * abs(1 - trace.flops_share) + 0.01, row["name"]
    assert dense["reference"] == "dense"


def test_the_timeline_shows_what_happened(lane: Lane) -> None:
    record = speed(lane, batch=1, steps=4, repeats=1, compiled=False)
    timeline = record.results["timeline"]
    assert timeline["step"] == 2
    blocks = timeline["blocks"]
    assert len(blocks) == lane.size.blocks
    assert all(block["dense_seconds"] > 0 and block["elastic_seconds"] > 0 for block in blocks)
    assert all((block["width"] > 0) == (block["keep"] and not block["reuse"]) for block in blocks)


@pytest.mark.slow
def test_compiled_rows_are_compared_with_the_compiled_dense_model(lane: Lane) -> None:
    record = speed(lane, batch=1, steps=3, repeats=1, compiled=True)
    rows = {row["name"]: row for row in record.results["rows"]}
    compiled = rows["skip + width + cache, compiled"]
    assert compiled["reference"] == "dense, compiled"
    assert compiled["flops_share"] == pytest.approx(rows["skip + width + cache"]["flops_share"])
    assert rows["dense, compiled"]["flops_share"] == 1
    assert rows["the same, frozen, compiled"]["flops_share"] < compiled["flops_share"]  # no routers
    assert {row["graphs"] for row in rows.values()} == {0}  # what is compiled was compiled in the warm-up


def test_some_rows_alone(lane: Lane) -> None:
    record = speed(lane, batch=1, steps=2, repeats=1, compiled=True, only=["the same, frozen"])
    assert [row["name"] for row in record.results["rows"]] == ["dense", "the same, frozen"]
    assert "timeline" not in record.results
    with pytest.raises(UnknownNameError, match="skip \\+ width"):
        speed(lane, batch=1, steps=2, repeats=1, compiled=False, only=["skip and width"])


def test_weights_are_made_in_the_dtype(tiny_size: Size) -> None:
    lane = Lane(tiny_size, torch.device("cpu"), torch.bfloat16)
    assert {parameter.dtype for parameter in lane.dense.parameters()} == {torch.bfloat16}
    record = speed(lane, batch=2, steps=2, repeats=1, compiled=False)
    assert record.config["dtype"] == "bfloat16"
    assert {parameter.dtype for parameter in lane.elastic["skip"].stack.parameters()} == {torch.float32}
    assert torch.get_default_dtype() == torch.float32


def test_a_twin_shares_the_weights(lane: Lane) -> None:
    lane.elastic_contender("one", lane_plan(lane))
    twin = dict(lane.elastic["one"].transformer.named_parameters())
    assert all(twin[name] is parameter for name, parameter in lane.dense.named_parameters())
    assert not hasattr(lane.dense.single_transformer_blocks[0], "_diffusers_hook")


def test_the_sizes_are_what_they_say() -> None:
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in SIZES[name].transformer().parameters()) for name in SIZES}
    assert counts["flux-cpu"] == pytest.approx(160.5e6, rel=0.02)
    assert counts["flux-cpu-small"] == pytest.approx(113e6, rel=0.02)
    assert counts["flux.1-dev"] == pytest.approx(11.9e9, rel=0.02)
    assert counts["qwen-image"] == pytest.approx(20.4e9, rel=0.02)
    assert counts["hunyuan3d-2.0"] == pytest.approx(1.1e9, rel=0.1)
    assert counts["hunyuan3d-2.1"] == pytest.approx(1.4e9, rel=0.1)
    with pytest.raises(UnknownNameError, match="flux-cpu"):
        size("flux-gpu")


def lane_plan(lane: Lane) -> Plan:
    return Plan(torch.ones(2, lane.size.blocks).numpy())
