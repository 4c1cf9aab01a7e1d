"""Routers that start at a schedule, on a tiny FLUX."""

import copy
from typing import Any

import pytest
import torch

from elastic_dit import ElasticConfig, elasticize
from elastic_dit.backbones import backbones
from elastic_dit.errors import ConfigError
from elastic_dit.training.flow import NoisyBatch
from elastic_dit.training.imitation import imitate
from elastic_dit.training.loop import Trainer
from tiny import Inputs, Tiny, output_of
from training.conftest import config_of


@pytest.fixture
def tiny() -> Tiny:
    return Tiny(backbones["flux"])


def at(tiny: Tiny, sigma: torch.Tensor, seed: int = 0) -> tuple[Inputs, NoisyBatch]:
    """A batch at given noise levels (B,), which are FLUX's timesteps."""
    inputs = tiny.inputs(len(sigma), seed) | {"timestep": sigma}
    return inputs, NoisyBatch(inputs["hidden_states"], inputs["hidden_states"], sigma)


def schedule_of(blocks: int) -> tuple[tuple[float, ...], ...]:
    """Two routes that differ in every block, also in the width."""
    low = tuple((1.0, 0.0, 0.25)[index % 3] for index in range(blocks))
    high = tuple((0.5, 0.75, 0.0)[index % 3] for index in range(blocks))
    return low, high


@pytest.mark.parametrize("router_input", ["timestep", "image"])
def test_routers_decide_as_the_schedule_says(tiny: Tiny, router_input: str) -> None:
    schedule = schedule_of(tiny.blocks)
    config = ElasticConfig.of(router_input=router_input, init_schedule=schedule, max_reuse=0, init_keep_prob=0.9)
    elastic = elasticize(tiny.transformer, config)
    before = copy.deepcopy(tiny.transformer.state_dict())
    grid = (torch.arange(16) + 0.5) / 16
    imitate(elastic, [at(tiny, grid, seed) for seed in range(3)])
    assert all(torch.equal(before[name], value) for name, value in tiny.transformer.state_dict().items())
    # a random model's timestep embedding says nothing of the levels between, nor of another text
    output_of(tiny.transformer, at(tiny, grid, seed=1)[0])
    right: list[bool] = []
    for (_, block, _, row), taken in elastic.trace.items():
        wanted = schedule[int(grid[row] >= 0.5)][block]
        right.append(taken.keep == bool(wanted) and taken.width == wanted)
        right.append(max(taken.keep_prob, 1 - taken.keep_prob) > 0.7)
    assert sum(right) >= (1.0 if router_input == "image" else 0.9) * len(right)


def test_routers_of_the_timestep_learn_where_a_range_ends(tiny: Tiny) -> None:
    """From batches at a few noise levels they learn what holds for all."""
    schedule = schedule_of(tiny.blocks)
    config = ElasticConfig.of(router_input="timestep", init_schedule=schedule, max_reuse=0, init_keep_prob=0.9)
    elastic = elasticize(tiny.transformer, config)
    imitate(elastic, [at(tiny, torch.full((4,), 0.9), seed) for seed in range(3)])
    grid = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.8])
    output_of(tiny.transformer, at(tiny, grid, seed=1)[0])
    taken = {(block, row): own for (_, block, _, row), own in elastic.trace.items()}
    right = [own.keep == bool(schedule[int(grid[row] >= 0.5)][block]) for (block, row), own in taken.items()]
    assert sum(right) >= 0.85 * len(right)


def test_training_starts_at_a_schedule(elastic_values: dict[str, Any]) -> None:
    elastic = {"init_schedule": [[1.0, 0.0, 0.5], [0.0, 1.0, 1.0]], "router_input": "timestep"}
    trainer = Trainer(config_of(elastic_values, elastic=elastic, router_steps=0, batch_size=8), quiet=True)
    model = trainer.trainee.elastic
    assert model is not None
    embedder = model.transformer.get_submodule(model.backbone.timestep_embedder)
    other = model.transformer.proj_out.weight
    read = [*model.stack.parameters(), *embedder.parameters()]  # routers, and all that they see
    before, start = [parameter.detach().clone() for parameter in read], other.detach().clone()
    batches = trainer.batches.from_step(trainer.step)
    for _ in range(4):  # the first has a learning rate of 0, and a fresh model passes no gradient on at once
        values = trainer._train_step(batches)
        assert values["keep/open_rate"] == pytest.approx(2 / 3, abs=0.05)
    assert all(torch.equal(*pair) for pair in zip(before, read, strict=True))
    assert not torch.equal(start, other)


def test_training_starts_along_a_path(elastic_values: dict[str, Any]) -> None:
    """Routers that stay as they start spend the mean of the budgets that are drawn: the ends, and what lies between."""
    path = [[0.9, 1, 0.5], [0.8, 1, 0.0], [0.5, 2, 0.0]]
    elastic = {"init_path": path, "budget_range": [0.3, 1.0], "router_input": "timestep", "budget_embedding": True}
    trainer = Trainer(config_of(elastic_values, elastic=elastic, router_steps=0, batch_size=6), quiet=True)
    assert trainer.trainee.elastic is not None
    stack = trainer.trainee.elastic.stack
    before = [parameter.detach().clone() for parameter in stack.routers.parameters()]
    batches = trainer.batches.from_step(trainer.step)
    for _ in range(8):  # a fresh model passes no gradient on at once
        values = trainer._train_step(batches)
        assert 0.555 <= round(values["keep/open_rate"], 4) <= 0.778  # thirds with 1, with 3, with 1 to 3 of 3 blocks
    assert all(torch.equal(*pair) for pair in zip(before, stack.routers.parameters(), strict=True))
    assert stack.embedding is not None and stack.embedding.weight.abs().sum() > 0, (
        "what the backbone is told is learned"
    )


def test_schedules_that_make_no_sense(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="init_schedule has 2 blocks; the transformer has"):
        elasticize(tiny.transformer, ElasticConfig.of(init_schedule=((1.0, 0.5),)))
    with pytest.raises(ConfigError, match="init_schedule must hold widths in 0..1"):
        ElasticConfig.of(init_schedule=((1.0, 1.0), (0.0, 0.0)))
    with pytest.raises(ConfigError, match="give one of them"):
        ElasticConfig.of(init_schedule=((1.0,),), init_route=(1.0,))
    with pytest.raises(ConfigError, match="init_path names block 9; the transformer has"):
        elasticize(tiny.transformer, ElasticConfig.of(init_path=((0.9, 9, 0.5),), budget_range=(0.3, 1.0)))


def test_a_schedule_needs_batches(elastic_values: dict[str, Any]) -> None:
    elastic = {"init_schedule": [[1.0, 0.0, 0.5]]}
    with pytest.raises(ConfigError, match="importance_batches"):
        Trainer(config_of(elastic_values, elastic=elastic, importance_batches=0), quiet=True)
