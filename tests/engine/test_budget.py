"""The dial of routers that know a range of budgets, in the engine: per request, and per sample of a batch."""

import numpy as np
import pytest
import torch

from elastic_dit import ElasticConfig, ElasticModel, elasticize
from elastic_dit.errors import ConfigError
from tiny import Inputs, Tiny, TinyElastic, mixed_config, output_of, run


@pytest.fixture
def conditioned(tiny_flux: Tiny) -> TinyElastic:
    tiny = TinyElastic(tiny_flux, mixed_config(budget_range=(0.2, 1.0), max_reuse=0))
    for router in tiny.elastic.routers:
        torch.nn.init.constant_(router.dial.gate_slope, 0.2)
        torch.nn.init.constant_(router.dial.width_slopes, 0.1)
    return tiny


def shares(elastic: ElasticModel, inputs: Inputs) -> list[float]:
    """Of the dense FLOPs, by sample."""
    output_of(elastic.transformer, inputs)
    batch = len(inputs["hidden_states"])
    taken = [[each for key, each in elastic.trace.items() if key[3] == row] for row in range(batch)]
    return [sum(t.flops for t in row) / sum(t.dense_flops for t in row) for row in taken]


def test_a_smaller_budget_spends_less(conditioned: TinyElastic) -> None:
    inputs = conditioned.inputs(6)
    spent = []
    for budget in (1.0, 0.7, 0.4, 0.2):
        conditioned.elastic.budget = budget
        assert conditioned.elastic.budget == budget
        spent.append(np.mean(shares(conditioned.elastic, inputs)))
    assert spent == sorted(spent, reverse=True)
    assert spent[0] - spent[-1] > 0.2


def test_each_sample_has_its_own(conditioned: TinyElastic) -> None:
    inputs, wanted = conditioned.inputs(4), [1.0, 0.2, 0.6, 0.2]
    conditioned.elastic.budget = wanted
    assert conditioned.elastic.budget == wanted
    together = output_of(conditioned.transformer, inputs)
    own = shares(conditioned.elastic, inputs)
    for row, budget in enumerate(wanted):
        conditioned.elastic.budget = budget
        one = conditioned.row(inputs, row)
        torch.testing.assert_close(
            together[row : row + 1], output_of(conditioned.transformer, one), rtol=1e-3, atol=1e-4
        )
        assert shares(conditioned.elastic, one) == pytest.approx([own[row]])


def test_two_guidance_branches_in_one_batch(conditioned: TinyElastic) -> None:
    """The budgets are those of the samples, in the order of either branch."""
    inputs = conditioned.inputs(4)
    conditioned.elastic.budget = [1.0, 0.2]
    halves = shares(conditioned.elastic, inputs)
    conditioned.elastic.budget = [1.0, 0.2, 1.0, 0.2]
    assert shares(conditioned.elastic, inputs) == halves
    conditioned.elastic.budget = [0.5] * 3
    with pytest.raises(ConfigError, match="3 samples, but the batch has 4"):
        output_of(conditioned.transformer, inputs)


def test_training_and_inference_spend_the_same(conditioned: TinyElastic) -> None:
    elastic, inputs = conditioned.elastic, conditioned.inputs(6)
    elastic.budget = [0.2, 1.0, 0.5, 0.2, 1.0, 0.8]
    elastic.train_mode()
    conditioned.transformer(**inputs)
    in_training = elastic.routing_logs()["flops/share"]
    losses = elastic.losses()
    losses.total.backward()
    for router in conditioned.elastic.routers:
        assert router.dial.gate_slope.grad is not None and router.dial.gate_slope.grad != 0
    elastic.eval_mode()
    assert np.mean(shares(elastic, inputs)) == pytest.approx(in_training, abs=0.05)  # routers are not in the former


def test_what_the_dial_refuses(conditioned: TinyElastic, tiny_flux: Tiny) -> None:
    for wrong in (0.1, 1.2, [0.5, 0.1], []):
        with pytest.raises(ConfigError, match="0.2 to 1"):
            conditioned.elastic.budget = wrong
    plain = elasticize(tiny_flux.transformer, mixed_config())
    with pytest.raises(ConfigError, match="one budget"):
        plain.budget = 0.5


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"budget_range": (0.8, 0.3)}, "budget_range"),
        ({"budget_range": (0.3, 1.5)}, "budget_range"),
        ({"budget_range": (0.6, 1.0), "default_budget": 0.5}, "default_budget"),
        ({"budget_range": (0.3, 1.0), "budget": "paper"}, "compute"),
    ],
)
def test_configs_that_make_no_sense(changes: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        mixed_config(**changes)


def test_noise_moves_the_route_and_not_what_the_budget_counts(routed_flux: TinyElastic) -> None:
    """The first block's input is the same with and without noise, so its p and q must be too."""
    elastic, inputs = routed_flux.elastic, routed_flux.inputs(4)
    elastic.train_mode()
    found = []
    for noise in (0.0, 5.0, 5.0):
        elastic.config.decision_noise = noise
        elastic.seed_noise(torch.Generator().manual_seed(1))
        out = routed_flux.transformer(**inputs, return_dict=False)[0]
        p, q, _, _ = elastic._engine.learning.routed[0]
        found.append((out.detach(), p.detach(), q.detach()))
    elastic.seed_noise(torch.Generator().manual_seed(1), enabled=False)
    silent = routed_flux.transformer(**inputs, return_dict=False)[0].detach()
    elastic.seed_noise(None)
    plain, noisy, again = found
    assert torch.equal(silent, plain[0])
    assert torch.equal(plain[1], noisy[1]) and torch.equal(plain[2], noisy[2])
    assert not torch.allclose(plain[0], noisy[0])
    assert torch.equal(noisy[0], again[0])
    with torch.no_grad():
        torch.testing.assert_close(routed_flux.transformer(**inputs, return_dict=False)[0], plain[0])


STEPS = 16


@pytest.fixture
def stepped(tiny_flux: Tiny) -> ElasticModel:
    """Routes from the whole model down to one block, a whole block from one to the next."""
    last = tiny_flux.blocks - 1
    path = [(1 - (index + 0.5) / tiny_flux.blocks, block, 0.0) for index, block in enumerate(range(last, 0, -1))]
    config = ElasticConfig.of(
        router_input="timestep", init_path=path, budget_range=(0.3, 1.0), max_reuse=0, router_hidden_size=2
    )
    return elasticize(tiny_flux.transformer, config)


def spent_by_step(elastic: ElasticModel, sample: int = 0) -> np.ndarray:
    """Of the dense FLOPs, (S,)."""
    spent, dense = (elastic.trace.array(name)[..., sample].sum(axis=1) for name in ("flops", "dense_flops"))
    return spent / dense


@pytest.mark.parametrize("budget", [0.4, 0.55, 0.62, 0.9])
def test_a_run_spends_its_budget_though_no_route_does(tiny_flux: Tiny, stepped: ElasticModel, budget: float) -> None:
    stepped.budget = budget
    run(tiny_flux.transformer, tiny_flux.steps(1, STEPS))
    by_step = spent_by_step(stepped)
    assert by_step.mean() == pytest.approx(budget, rel=0.03)
    assert len(set(by_step.round(6))) == 2, "the routes on either side of it"
    run(tiny_flux.transformer, tiny_flux.steps(1, STEPS, seed=1))
    assert (spent_by_step(stepped) == by_step).all(), "a new run owes nothing"


def test_each_sample_settles_its_own(tiny_flux: Tiny, stepped: ElasticModel) -> None:
    stepped.budget = [0.4, 1.0, 0.62]
    run(tiny_flux.transformer, tiny_flux.steps(3, STEPS))
    for sample, budget in enumerate((0.4, 1.0, 0.62)):
        assert spent_by_step(stepped, sample).mean() == pytest.approx(budget, rel=0.03)
    assert stepped.trace.array("keep")[..., 1].all(), "the whole budget is the whole model, and the routers on top"


def test_what_is_reused_counts_as_run(tiny_flux: Tiny, stepped: ElasticModel) -> None:
    """Else a budget would spend on more blocks what reuse saves."""
    stepped.delta, stepped.max_reuse, stepped.budget = 0.5, 3, 0.62
    run(tiny_flux.transformer, tiny_flux.steps(1, STEPS))
    assert stepped.trace.reuse_rate > 0.5
    kept = stepped.trace.array("keep").mean(axis=1)
    stepped.max_reuse = 0
    run(tiny_flux.transformer, tiny_flux.steps(1, STEPS))
    assert (stepped.trace.array("keep").mean(axis=1) == kept).all()
