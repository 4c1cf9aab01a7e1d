"""At full capacity the elastic model is the dense one, and taking it apart leaves nothing behind."""

import torch

from elastic_dit import elasticize, restore
from tiny import Tiny, TinyElastic, mixed_config, output_of


def leftovers(transformer: torch.nn.Module) -> list[str]:
    """Modules that still carry a hook registry or a forward of their own."""
    return [
        name
        for name, module in transformer.named_modules()
        if "forward" in module.__dict__ or hasattr(module, "_diffusers_hook") or module._forward_hooks
    ]


def test_full_capacity_is_dense_to_the_bit_and_restore_leaves_nothing(tiny: Tiny) -> None:
    inputs, keys = tiny.inputs(3), list(tiny.transformer.state_dict())
    expected = output_of(tiny.dense, inputs)
    clean = leftovers(tiny.dense)

    elasticize(tiny.transformer)
    assert torch.equal(output_of(tiny.transformer, inputs), expected)
    assert list(tiny.transformer.state_dict()) == keys

    restore(tiny.transformer)
    assert leftovers(tiny.transformer) == clean
    assert list(tiny.transformer.state_dict()) == keys
    assert torch.equal(output_of(tiny.transformer, inputs), expected)
    for name, value in tiny.transformer.state_dict().items():
        assert torch.equal(value, tiny.dense.state_dict()[name]), name


def test_random_routers_are_not_dense(routed: TinyElastic) -> None:
    inputs = routed.inputs(3)
    assert not torch.allclose(output_of(routed.transformer, inputs), output_of(routed.dense, inputs), atol=1e-2)


def test_every_block_has_its_router(tiny: Tiny) -> None:
    elastic = elasticize(tiny.transformer, mixed_config())
    assert len(elastic.routers) == tiny.blocks == len(elastic.sites)
    for site in elastic.sites:
        assert site.mlps, f"block {site.index} declares no MLP that shrinks"
    restore(tiny.transformer)
