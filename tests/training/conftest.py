"""A tiny run on real sprites: what every trainer test starts from."""

from pathlib import Path
from typing import Any

import pytest

from elastic_dit.training.config import TrainConfig
from elastic_dit.training.data.prepare import prepare

SPRITES = Path(__file__).parents[1] / "data" / "sprites"


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emoji")
    prepare(folder, SPRITES, scenes=16)
    return folder


@pytest.fixture
def values(shards: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The keys of a tiny dense run; the encoded data is shared by all tests."""
    return {
        "output": tmp_path / "run",
        "model": "emoji-flux:tiny",
        "data": {
            "path": str(shards / "train"),
            "resolution": 16,
            "limit": 40,
            "cache": tmp_path_factory.getbasetemp() / "cache",
        },
        "optimizer": {"learning_rate": 1e-3, "router_learning_rate": 1e-2, "warmup_steps": 2},
        "steps": 6,
        "batch_size": 4,
        "log_every": 1,
        "checkpoint_every": 2,
        "threads": 1,
    }


@pytest.fixture
def elastic_values(values: dict[str, Any]) -> dict[str, Any]:
    """The same, elastic."""
    return values | {"elastic": {"rho_g": 0.5, "rho_w": 0.6, "router_hidden_size": 8}, "ramp_steps": 2}


def config_of(values: dict[str, Any], **changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(values | changes)
