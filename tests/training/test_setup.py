"""Which parameters learn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from tests.training.conftest import config_of

from elastic_dit import ElasticConfig, elasticize
from elastic_dit.checkpoint import WEIGHTS_NAME
from elastic_dit.errors import ConfigError
from elastic_dit.models import EmojiFluxPipeline
from elastic_dit.training.loop import Trainer


@pytest.fixture
def with_lora(tmp_path: Path) -> Path:
    """An adapter that holds routers and a LoRA."""
    pipeline = EmojiFluxPipeline.from_size("tiny", seed=0)
    pipeline.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "proj_out"]))
    return elasticize(pipeline, ElasticConfig.of(router_hidden_size=8)).save(tmp_path / "start")


@pytest.mark.parametrize("trainable", ["lora", "routers"])
@pytest.mark.parametrize("fresh_routers", [False, True])
def test_an_adapters_lora_goes_on_learning(
    values: dict[str, Any], elastic_values: dict[str, Any], with_lora: Path, trainable: str, fresh_routers: bool
) -> None:
    values = elastic_values if fresh_routers else values
    config = config_of(values, adapter=str(with_lora), trainable=trainable, steps=3, ema_decay=0)
    before, after = (load_file(each / WEIGHTS_NAME) for each in (with_lora, Trainer(config, quiet=True).run()))
    kinds = {name.split(".")[0] for name in before}
    assert {name.split(".")[0] for name in after} == kinds == {"routers", "lora"}
    lora = [name for name in before if name.startswith("lora.")]
    assert sorted(lora) == sorted(name for name in after if name.startswith("lora."))
    assert any(not torch.equal(before[name], after[name]) for name in lora) == (trainable == "lora")


def test_a_fixed_route_has_no_routers_to_learn(values: dict[str, Any], tmp_path: Path) -> None:
    pipeline = EmojiFluxPipeline.from_size("tiny", seed=0)
    blocks = len(elasticize(pipeline).sites)
    start = elasticize(pipeline, ElasticConfig.of(route=(1.0,) * blocks)).save(tmp_path / "start")
    with pytest.raises(ConfigError, match="trainable: routers leaves nothing to learn"):
        Trainer(config_of(values, adapter=str(start), trainable="routers"), quiet=True)
