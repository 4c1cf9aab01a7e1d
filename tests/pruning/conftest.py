"""The small model's pipeline with random weights, and four encoded pairs."""

from pathlib import Path

import pytest
import torch

from elastic_dit.models import EmojiFluxPipeline
from elastic_dit.training.config import DataConfig
from elastic_dit.training.data.cache import EncodedDataset, encode
from elastic_dit.training.data.prepare import prepare
from elastic_dit.training.families.base import Family, family_of

SPRITES = Path(__file__).parents[1] / "data" / "sprites"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare(folder, SPRITES, scenes=4)
    return folder / "train"


@pytest.fixture
def family() -> Family:
    pipe = EmojiFluxPipeline.from_size("tiny")
    torch.manual_seed(0)
    for parameter in pipe.transformer.parameters():  # a fresh model is the identity and predicts 0
        torch.nn.init.normal_(parameter, std=0.05)
    return family_of(pipe)


@pytest.fixture
def pairs(family: Family, data: Path, tmp_path: Path) -> EncodedDataset:
    return encode(family, DataConfig(path=str(data), resolution=16, cache=tmp_path, limit=4), str(data), quiet=True)
