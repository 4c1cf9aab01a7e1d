"""What the backbone is told of a budget."""

import pytest
import torch

from elastic_dit import ElasticConfig, elasticize
from elastic_dit.core.budget_embedding import BudgetEmbedding
from elastic_dit.errors import ConfigError
from tiny import Tiny, output_of

PATH = ((0.9, 1, 0.5), (0.6, 1, 0.0))


def test_it_says_nothing_of_the_whole_budget_or_before_training() -> None:
    embedding = BudgetEmbedding(8)
    budget = torch.tensor([1.0, 0.5, 0.3])
    assert torch.equal(embedding(budget), torch.zeros(3, 8))
    torch.nn.init.normal_(embedding.weight)
    told = embedding(budget)
    assert torch.equal(told[0], torch.zeros(8))
    wanted = sum(0.5**power * embedding.weight[power - 1] for power in (1, 2, 3))
    torch.testing.assert_close(told[1], wanted)
    assert not torch.allclose(told[1], told[2])


def test_the_backbone_hears_it_and_its_routers_do_not(tiny_flux: Tiny) -> None:
    """Each row by its own budget; what the routers decide is what it was."""
    config = ElasticConfig.of(
        router_input="timestep", init_path=PATH, budget_range=(0.3, 1.0), budget_embedding=True, max_reuse=0
    )
    elastic = elasticize(tiny_flux.transformer, config)
    inputs = tiny_flux.inputs(2)
    elastic.budget = [1.0, 0.5]
    before, taken = output_of(tiny_flux.transformer, inputs), list(elastic.trace.values())
    torch.nn.init.normal_(elastic.stack.embedding.weight)
    after = output_of(tiny_flux.transformer, inputs)
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1], before[1], atol=1e-3)
    assert list(elastic.trace.values()) == taken
    dense = output_of(tiny_flux.dense, inputs)
    torch.testing.assert_close(after[0], dense[0], rtol=1e-4, atol=1e-5)


def test_it_needs_a_range() -> None:
    with pytest.raises(ConfigError, match="budget_embedding tells the backbone a budget; it needs a budget_range"):
        ElasticConfig.of(budget_embedding=True)
