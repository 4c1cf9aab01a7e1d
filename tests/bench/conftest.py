from pathlib import Path

import pytest

from elastic_dit.bench.compare import Bench
from elastic_dit.bench.sizes import Size
from elastic_dit.models.loading import load_pipeline
from emoji import save_pair
from small import small_flux


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def bench(pair: tuple[Path, Path]) -> Bench:
    return Bench(load_pipeline(pair[0]), str(pair[1]))


@pytest.fixture
def tiny_size() -> Size:
    return small_flux(branches=2)
