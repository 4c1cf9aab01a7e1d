"""Learning-to-Cache learns a table with the model frozen, and its layers reuse by it."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from elastic_dit.baselines import Task, baselines
from elastic_dit.baselines.learning_to_cache import (
    NAME,
    WEIGHT,
    calls_of,
    error_of,
    layers_of,
    learn,
    reused_cells,
)
from elastic_dit.errors import BackboneError, ConfigError
from runs import Runs

STEPS = 4


@pytest.fixture
def runs() -> Runs:
    return Runs("flux", STEPS)


def with_table(runs: Runs, betas: Tensor, share: float) -> tuple[Any, Any]:
    """A fresh transformer that reuses by a given table."""
    task = Task(STEPS, 1, runs.task.sample, {NAME: betas})
    transformer = runs.fresh()
    return transformer, baselines[NAME].apply(transformer, share, task)


def errors_of(runs: Runs, transformer: Any) -> list[Any]:
    """The error as a function of the betas, at steps 1 and 3."""
    calls = calls_of(transformer, runs.task)
    return [error_of(transformer, layers_of(transformer), calls[step - 1], calls[step]) for step in (1, 3)]


def test_layers_are_attention_and_mlps(qwen: Runs, runs: Runs) -> None:
    """FLUX: two double blocks, then two single ones whose attention and MLP leave through one projection."""
    transformer = runs.fresh()
    names = {module: name.split(".", 2)[-1] for name, module in transformer.named_modules()}
    found = [tuple(names[module] for module in layer) for layer in layers_of(transformer)]
    assert found == [("attn",), ("ff",), ("ff_context",)] * 2 + [("proj_mlp", "act_mlp", "attn", "proj_out")] * 2
    assert len(layers_of(qwen.fresh())) == 3 * 3


def test_betas_lead_from_cached_to_computed(runs: Runs) -> None:
    """At 1 nothing is lost; at 0 as much as reuse loses in a run, whose step before is whole."""
    transformer = runs.fresh().requires_grad_(False)
    error = errors_of(runs, transformer)[0]
    assert float(error(torch.ones(8))) < 1e-12
    cached, applied = with_table(runs, torch.zeros(2, 8), 1.0)
    applied.restart()
    latents = runs.trajectory.noise
    velocities: list[list[Tensor]] = []
    for model in (runs.fresh(), cached):
        seen: list[Tensor] = []
        model.register_forward_hook(lambda _module, _inputs, output, seen=seen: seen.append(output[0]))
        after = latents
        for index in range(2):
            after, _ = runs.trajectory.step(model, after, index)
        velocities.append(seen)
    torch.testing.assert_close(velocities[1][0], velocities[0][0], rtol=0, atol=0)
    lost = (velocities[1][1] - velocities[0][1]).square().mean()
    assert float(error(torch.zeros(8))) == pytest.approx(float(lost), rel=1e-3)


def test_learning_lowers_the_objective_and_no_weight_changes(runs: Runs) -> None:
    transformer = runs.fresh()
    before = copy.deepcopy(transformer.state_dict())
    betas = learn(transformer, runs.task)
    torch.testing.assert_close(transformer.state_dict(), before, rtol=0, atol=0)
    assert betas.shape == (STEPS // 2, 8) and ((betas > 0) & (betas < 1)).all()
    errors = errors_of(runs, transformer)
    unit = sum(float(error(torch.zeros(8))) for error in errors) / 2
    for error, learned in zip(errors, betas, strict=True):
        objective = [float(error(b)) / unit + WEIGHT * float(b.mean()) for b in (learned, torch.full((8,), 0.5))]
        assert objective[0] < objective[1]
        same_sum = torch.full((8,), float(learned.mean()))
        assert float(error(learned)) < 0.5 * float(error(same_sum))


def test_a_layer_that_never_changes_reuses(runs: Runs) -> None:
    """The fifth is the second block's image MLP: it matters, until only its bias leaves it."""
    transformer = runs.fresh()
    assert (learn(transformer, runs.task)[:, 4] > 0.5).all()
    with torch.no_grad():
        transformer.transformer_blocks[1].ff.net[2].weight.zero_()
    assert (learn(transformer, runs.task)[:, 4] < 0.05).all()


def test_a_larger_share_reuses_all_that_a_smaller_one_does() -> None:
    betas = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    tables = [reused_cells(betas, share) for share in (0.0, 0.2, 0.5, 0.8, 1.0)]
    assert [int(table.sum()) for table in tables] == [0, 7, 18, 28, 35]
    for smaller, larger in pairwise(tables):
        assert (larger | ~smaller).all()
    assert betas[tables[2]].max() < betas[~tables[2]].min()


def test_layers_run_at_the_steps_the_table_says(runs: Runs) -> None:
    betas = torch.ones(2, 8)
    betas[0, 0] = betas[1, 1] = betas[1, 7] = 0
    transformer, applied = with_table(runs, betas, 3 / 16)
    double, single = transformer.transformer_blocks[0], transformer.single_transformer_blocks
    assert runs.steps_of(double.attn.to_q, transformer, applied) == [0, 2, 3]
    assert runs.steps_of(double.ff.net[2], transformer, applied) == [0, 1, 2]
    assert runs.steps_of(single[1].attn.to_q, transformer, applied) == [0, 1, 2]
    for module in (double.norm1, single[0].attn.to_q, single[1].norm):
        assert runs.steps_of(module, transformer, applied) == [0, 1, 2, 3]


def test_all_cells_are_fora_at_every_other_step(runs: Runs) -> None:
    transformer, applied = with_table(runs, torch.rand(2, 8), 1.0)
    torch.testing.assert_close(runs.run(transformer, applied), runs.run(*runs.applied("fora", 2)), rtol=0, atol=0)


def test_no_cell_is_dense(runs: Runs) -> None:
    transformer, applied = with_table(runs, torch.rand(2, 8), 0.0)
    torch.testing.assert_close(runs.run(transformer, applied), runs.run(runs.fresh()), rtol=0, atol=0)


def test_it_learns_once_for_all_settings(runs: Runs) -> None:
    runs.applied(NAME, 0.5)
    table = runs.task.learned[NAME]
    runs.applied(NAME, 0.25)
    assert runs.task.learned[NAME] is table


def test_what_it_refuses(runs: Runs) -> None:
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        with_table(runs, torch.rand(2, 8), 1.5)
    with pytest.raises(BackboneError, match="saw 4 calls of the transformer in a run of 3 steps"):
        learn(runs.fresh(), Task(3, 1, runs.task.sample))
