"""Every pruning method on a tiny FLUX: it spends its budget, and changes no weight but the channels' order."""

import copy
from itertools import pairwise

import pytest
import torch

from elastic_dit import restore
from elastic_dit.core.cost import BlockCost
from elastic_dit.errors import ConfigError
from elastic_dit.pruning import prunings
from elastic_dit.pruning.base import NARROWEST, Subject, fit, settle, share
from elastic_dit.pruning.noise_levels import Level, even
from elastic_dit.pruning.prune import prune
from elastic_dit.pruning.tinyfusion import Groups, split
from noisy import batches_of
from tiny import Tiny, output_of

COSTS = [BlockCost(60, 40), BlockCost(60, 40), BlockCost(30, 20), BlockCost(30, 20)]


@pytest.mark.parametrize("method", list(prunings))
@pytest.mark.parametrize("budget", [0.45, 0.8])
def test_the_budget_is_spent(tiny_flux: Tiny, method: str, budget: float) -> None:
    elastic = prune(tiny_flux.transformer, batches_of(tiny_flux), prunings[method], budget)
    output_of(tiny_flux.transformer, tiny_flux.inputs())
    assert elastic.trace.flops_share == pytest.approx(budget, rel=0.02)
    assert len(elastic.routers) == 0
    route = elastic.config.route
    assert route is not None
    assert all(width == 0 or NARROWEST <= width <= 1 for width in route)
    assert [taken.keep for taken in elastic.trace.values()] == [bool(w) for w in route for _ in range(2)]


@pytest.mark.parametrize("method", list(prunings))
def test_only_the_order_of_channels_changes(tiny_flux: Tiny, method: str) -> None:
    prune(tiny_flux.transformer, batches_of(tiny_flux), prunings[method], 0.5)
    restore(tiny_flux.transformer)
    inputs = tiny_flux.inputs(seed=5)
    torch.testing.assert_close(output_of(tiny_flux.transformer, inputs), output_of(tiny_flux.dense, inputs))
    assert not getattr(tiny_flux.transformer, "peft_config", None)


def test_greedy_is_nearer_to_dense_than_chance(tiny_flux: Tiny) -> None:
    batches = batches_of(tiny_flux)
    errors: dict[str, float] = {}
    for method in ("greedy", "random"):
        transformer = copy.deepcopy(tiny_flux.dense)
        for seed in range(1 if method == "greedy" else 4):
            elastic = prune(transformer, batches, prunings[method], 0.5, seed=seed)
            apart = [
                (output_of(transformer, inputs) - output_of(tiny_flux.dense, inputs)).square().mean()
                for inputs, _ in batches
            ]
            errors[f"{method} {seed}"] = float(torch.stack(apart).mean())
            elastic.reset()
    assert errors.pop("greedy 0") < sum(errors.values()) / len(errors)


def test_random_routes_follow_their_seed(tiny_flux: Tiny) -> None:
    batches = batches_of(tiny_flux, 1)
    routes = [prune(tiny_flux.transformer, batches, prunings["random"], 0.4, seed=s).config.route for s in (0, 0, 3)]
    assert routes[0] == routes[1] != routes[2]


@pytest.mark.parametrize("budget", [0.0, 1.5])
def test_a_budget_that_is_no_share(tiny_flux: Tiny, budget: float) -> None:
    with pytest.raises(ConfigError, match=f"budget is {budget:g}; expected a share"):
        prune(tiny_flux.transformer, batches_of(tiny_flux, 1), prunings["random"], budget)


def test_fit_keeps_few_blocks_and_narrows_the_last() -> None:
    route = fit([0, 1, 2, 3], COSTS, budget=0.6)  # 180 of 300
    assert route == (1.0, 0.5, 0.0, 0.0)
    assert share(route, COSTS) == pytest.approx(0.6)


def test_fit_goes_on_to_the_block_before() -> None:
    route = fit([2, 0, 1, 3], COSTS, budget=0.6)
    assert route == (0.25, 0.25, 0.5, 0.0)
    assert share(route, COSTS) == pytest.approx(0.6)


def test_fit_says_what_cannot_be_spent() -> None:
    with pytest.raises(ConfigError, match="0.9 cannot be spent with MLPs of width 0.5"):
        fit(range(4), COSTS, budget=0.9, width=0.5)


def test_settle_narrows_widens_or_leaves() -> None:
    assert settle((1.0, 0.0, 1.0, 0.0), [0, 2], COSTS, budget=0.5) == (1.0, 0.0, 1.0, 0.0)
    assert settle((1.0, 0.0, 1.0, 0.0), [0, 2], COSTS, budget=0.45) == (0.625, 0.0, 1.0, 0.0)
    assert settle((0.5, 0.0, 0.5, 0.0), [0, 2], COSTS, budget=0.45) == (0.625, 0.0, 1.0, 0.0)  # the last first


def test_groups_keep_exactly_n_of_m() -> None:
    sizes, kept = split([5, 20], 13)
    assert sum(sizes) == 25
    assert sum(kept) == 13
    assert max(sizes) <= 4
    assert all(0 < keep < size for size, keep in zip(sizes, kept, strict=True))
    groups = Groups(sizes, kept)
    edges = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    for _ in range(20):
        gates = groups.sample(temperature=4.0).detach()
        assert set(gates.tolist()) <= {0.0, 1.0}
        assert [round(float(gates[a:b].sum())) for a, b in pairwise(edges)] == kept
    assert int(groups.best().sum()) == 13
    assert float(groups.probabilities().sum()) == pytest.approx(13)


def test_the_masks_learn_what_the_loss_wants() -> None:
    groups = Groups([4], [2])
    optimizer = torch.optim.Adam(groups.parameters(), lr=0.1)
    torch.manual_seed(0)
    for _ in range(60):
        gates = groups.sample(temperature=1.0)
        (gates - torch.tensor([0.0, 1.0, 0.0, 1.0])).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert groups.best().tolist() == [False, True, False, True]


def test_error_is_zero_where_nothing_is_cut(tiny_flux: Tiny) -> None:
    elastic = prune(tiny_flux.transformer, batches_of(tiny_flux), prunings["random"], 1.0)
    subject = Subject(elastic, batches_of(tiny_flux))
    blocks = len(subject.costs)
    assert subject.error([1.0] * blocks) == 0
    assert subject.error([0.0] + [1.0] * (blocks - 1)) > 0


def test_one_path_passes_every_budget(tiny_flux: Tiny) -> None:
    """Each sample of a batch spends what it is asked to, as nearly as whole changes can; routes lie in each other."""
    elastic = prune(tiny_flux.transformer, batches_of(tiny_flux), prunings["greedy"], 0.5, lowest=0.3)
    inputs = tiny_flux.inputs(2)
    output_of(tiny_flux.transformer, inputs)
    assert elastic.budget == 0.5
    assert elastic.config.init_path is not None
    largest = max(cost.dense for cost in elastic.costs) / sum(cost.dense for cost in elastic.costs)
    ran: list[list[float]] = []
    for budget in (0.3, 0.4, 0.5, 0.65, 0.8, 1.0):
        elastic.budget = budget
        output_of(tiny_flux.transformer, inputs)
        assert elastic.trace.flops_share == pytest.approx(budget, abs=largest / 2 + 0.01)
        ran.append([taken.width * taken.keep for taken in elastic.trace.values()])
    assert all(narrow <= wide for before, after in pairwise(ran) for narrow, wide in zip(before, after, strict=True))
    elastic.budget = [0.3, 1.0]
    output_of(tiny_flux.transformer, inputs)
    mixed = [taken.width * taken.keep for taken in elastic.trace.values()]
    assert mixed[0::2] == ran[0][0::2] and mixed[1::2] == ran[-1][1::2]


def test_a_path_that_cannot_be(tiny_flux: Tiny) -> None:
    batches = batches_of(tiny_flux)
    for method, budget, levels in (("random", 0.5, []), ("greedy", 0.2, []), ("greedy", 0.5, even(2))):
        with pytest.raises(ConfigError, match=f"every budget down to 0.3: .* got {max(1, len(levels))} and {method}"):
            prune(tiny_flux.transformer, batches, prunings[method], budget, levels=levels, lowest=0.3)


def test_levels_share_one_budget(tiny_flux: Tiny) -> None:
    """Each level's error counts for its own batches, and one level may spend more than another."""
    batches = batches_of(tiny_flux, 4)
    elastic = prune(tiny_flux.transformer, batches, prunings["random"], 1.0)
    subject, lower = Subject(elastic, batches, levels=even(2)), Subject(elastic, batches[:2])
    blocks = len(lower.costs)
    assert len(subject.costs) == 2 * blocks
    cut, whole = [0.0] + [1.0] * (blocks - 1), [1.0] * blocks
    assert subject.error([*cut, *whole]) == pytest.approx(lower.error(cut) / 2)
    route = prunings["greedy"].choose(subject, 0.6)
    assert share(route, subject.costs) == pytest.approx(0.6, rel=0.02)
    with pytest.raises(ConfigError, match="3 levels of noise need as many batches each, got 4 batches"):
        prune(tiny_flux.transformer, batches, prunings["greedy"], 0.6, levels=even(3))


def test_a_level_counts_by_its_steps_and_its_worth(tiny_flux: Tiny) -> None:
    """What it spends is counted for the steps it has, and its error for what it does to the image."""
    batches = batches_of(tiny_flux, 2)
    elastic = prune(tiny_flux.transformer, batches, prunings["random"], 1.0)
    levels = [Level(visits=0.25, worth=0.1), Level(visits=0.75, worth=0.9)]
    subject, alike = Subject(elastic, batches, levels=levels), Subject(elastic, batches[1:])
    blocks = len(alike.costs)
    cut, whole = [0.0] + [1.0] * (blocks - 1), [1.0] * blocks
    assert subject.error([*whole, *cut]) == pytest.approx(0.9 * alike.error(cut))
    assert share([*cut, *whole], subject.costs) == pytest.approx(1 - 0.25 * (1 - share(cut, alike.costs)))
    route = prunings["greedy"].choose(subject, 0.6)
    assert share(route, subject.costs) == pytest.approx(0.6, rel=0.02)
