from pathlib import Path

import pytest

from elastic_dit.bench.compare import Bench
from elastic_dit.models.loading import load_pipeline
from emoji import save_pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def bench(pair: tuple[Path, Path]) -> Bench:
    return Bench(load_pipeline(pair[0]), str(pair[1]))
