"""How much a block matters: against blocks that are taken out by hand."""

from typing import Any

import pytest
import torch

from elastic_dit.evaluation.block_study import study_blocks
from elastic_dit.evaluation.difficulty import quarters, scene_difficulty
from elastic_dit.evaluation.held_out import NoisyPairs
from elastic_dit.records import RunRecord
from studies import SIZE, Subject

LEVELS = (0.25, 0.75)


def velocity(studied: Subject, inputs: list[dict[str, Any]]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([studied.family.pipeline.transformer(**one, return_dict=False)[0] for one in inputs])


@pytest.fixture(scope="module")
def inputs(studied: Subject) -> list[dict[str, Any]]:
    """Of the easy and the hard quarter, at the second level."""
    easy, hard = quarters([scene_difficulty(one.prompt) for one in studied.scenes])
    chosen = [studied.scenes[index] for index in easy + hard]
    return [one for one, _ in NoisyPairs(studied.family, chosen, SIZE, 4, 3).at(LEVELS[1])]


@pytest.fixture(scope="module")
def before(studied: Subject, inputs: list[dict[str, Any]]) -> torch.Tensor:
    return velocity(studied, inputs)


@pytest.fixture(scope="module")
def record(studied: Subject, before: torch.Tensor) -> RunRecord:
    return study_blocks(studied.family, studied.scenes, SIZE, LEVELS, batch=4, seed=3)


def test_a_block_left_out_is_the_identity(
    record: RunRecord, studied: Subject, inputs: list[dict[str, Any]], before: torch.Tensor
) -> None:
    block = studied.family.pipeline.transformer.single_transformer_blocks[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            block, "forward", lambda hidden_states, encoder_hidden_states, **_: (encoder_hidden_states, hidden_states)
        )
        without = velocity(studied, inputs)
    expected = (without - before).square().sum((1, 2)) / before.square().sum((1, 2))
    assert record.samples["left_out_sigma_0.75_block_2_change"] == pytest.approx(expected.tolist(), rel=1e-3)
    left_out = record.results["left_out"]
    assert left_out["easy"][1][1] == pytest.approx(float(expected[:3].mean()), rel=1e-3)
    assert left_out["hard"][1][1] == pytest.approx(float(expected[3:].mean()), rel=1e-3)


def test_a_quarter_of_the_mlp_is_not_no_block(record: RunRecord) -> None:
    out, quarter = (torch.tensor(record.results[name]["easy"]) for name in ("left_out", "quarter"))
    assert out.shape == quarter.shape == (len(LEVELS), 3)
    assert (quarter > 0).all()
    assert not torch.isclose(out, quarter, rtol=0.01).any()
    for name in ("left_out", "quarter"):
        assert all(-1 <= value <= 1 for value in record.results[name]["agreement"])


def test_the_model_is_left_as_it_was(
    record: RunRecord, studied: Subject, inputs: list[dict[str, Any]], before: torch.Tensor
) -> None:
    assert not hasattr(studied.family.pipeline.transformer, "_diffusers_hook")
    torch.testing.assert_close(velocity(studied, inputs), before, atol=1e-5, rtol=1e-4)
