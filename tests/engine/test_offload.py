"""Weights that accelerate or diffusers move to the device and away: elastic before or after, and back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import StableDiffusion3Pipeline

from elastic_dit import ElasticConfig, elasticize, restore
from elastic_dit.backbones import backbones
from elastic_dit.errors import BackboneError
from sd3 import draw, pipeline_of
from tiny import Tiny, mixed_config, output_of, scatter_routers


@pytest.fixture
def pipe() -> StableDiffusion3Pipeline:
    return pipeline_of(Tiny(backbones["sd3"]).transformer)


@pytest.mark.parametrize("first", ["elastic", "offloaded"])
def test_every_image_of_an_offloaded_pipeline_is_elastic(pipe: StableDiffusion3Pipeline, first: str) -> None:
    """The pipeline takes accelerate's hooks off and puts them on again after each call."""
    dense = draw(pipe)
    if first == "offloaded":
        pipe.enable_model_cpu_offload(device="cpu")
    elastic = elasticize(pipe, mixed_config())
    scatter_routers(elastic, Tiny(backbones["sd3"]).inputs(6, seed=11))
    if first == "elastic":
        pipe.enable_model_cpu_offload(device="cpu")
    images = [draw(pipe) for _ in range(3)]
    assert not torch.equal(images[0], dense)
    assert torch.equal(images[1], images[0])
    assert torch.equal(images[2], images[0])


@pytest.mark.parametrize("first", ["elastic", "offloaded"])
def test_an_offloaded_pipeline_is_restored_for_good(pipe: StableDiffusion3Pipeline, first: str) -> None:
    dense = draw(pipe)
    if first == "offloaded":
        pipe.enable_model_cpu_offload(device="cpu")
    elasticize(pipe, ElasticConfig.of(route=(1.0, 0.5, 1.0), max_forecast=1))
    if first == "elastic":
        pipe.enable_model_cpu_offload(device="cpu")
    assert not torch.equal(draw(pipe), dense)
    restore(pipe)
    assert hasattr(pipe.transformer, "_hf_hook"), "it is offloaded still"
    for _ in range(2):
        assert torch.equal(draw(pipe), dense)
    pipe.remove_all_hooks()
    assert torch.equal(draw(pipe), dense)


def by_layer(transformer: Any) -> None:
    cpu_offload(transformer, torch.device("cpu"), offload_buffers=True)


def in_groups(transformer: Any) -> None:
    cpu = torch.device("cpu")
    transformer.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


def in_blocks(transformer: Any) -> None:
    cpu = torch.device("cpu")
    transformer.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
    )


def cast(transformer: Any) -> None:
    transformer.enable_layerwise_casting(storage_dtype=torch.float32, compute_dtype=torch.float32)


@pytest.mark.parametrize("hook", [by_layer, in_groups, in_blocks, cast])
def test_layers_hooked_since_are_restored(hook: Callable[[Any], None]) -> None:
    """Their hooks keep the forward that they found, which was that of an elastic layer."""
    tiny = Tiny(backbones["flux"])
    inputs = tiny.inputs()
    route = ElasticConfig.of(route=(1.0, 0.5, 1.0, 0.0))
    elastic = elasticize(tiny.transformer, route)
    routed, share = output_of(tiny.transformer, inputs), elastic.trace.flops_share
    elastic = elasticize(tiny.transformer, route)  # which has measured no block's cost yet
    hook(tiny.transformer)
    torch.testing.assert_close(output_of(tiny.transformer, inputs), routed)
    assert elastic.trace.flops_share == share
    restore(tiny.transformer)
    torch.testing.assert_close(output_of(tiny.transformer, inputs), output_of(tiny.dense, inputs))


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    tiny = Tiny(backbones["flux"])
    by_layer(tiny.transformer)
    with pytest.raises(BackboneError, match="offloaded layer by layer: make it elastic first"):
        elasticize(tiny.transformer)
    elastic = elasticize(Tiny(backbones["flux"]).transformer)
    by_layer(elastic.transformer)
    with pytest.raises(BackboneError, match="offloaded layer by layer: take that off first"):
        elastic.save(tmp_path)
    assert torch.equal(output_of(tiny.transformer, tiny.inputs()), output_of(tiny.dense, tiny.inputs()))


@pytest.mark.parametrize("hook", [in_groups, in_blocks, cast])
def test_layers_hooked_before(hook: Callable[[Any], None]) -> None:
    """Blocks are left out; a projection that is hooked itself stays whole, and is counted so."""
    tiny = Tiny(backbones["flux"])
    inputs = tiny.inputs()
    widths = (1.0, 0.5 if hook is in_blocks else 1.0, 1.0, 0.0)
    elastic = elasticize(tiny.transformer, ElasticConfig.of(route=widths))
    routed, share = output_of(tiny.transformer, inputs), elastic.trace.flops_share
    restore(tiny.transformer)
    hook(tiny.transformer)
    elastic = elasticize(tiny.transformer, ElasticConfig.of(route=(1.0, 0.5, 1.0, 0.0)))
    torch.testing.assert_close(output_of(tiny.transformer, inputs), routed)
    assert elastic.trace.flops_share == pytest.approx(share)
    restore(tiny.transformer)
    torch.testing.assert_close(output_of(tiny.transformer, inputs), output_of(tiny.dense, inputs))
