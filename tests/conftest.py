"""Small models that every test of the method runs on, one for each backbone there is."""

import os
from collections.abc import Iterator

import pytest
import torch

from elastic_dit.backbones import backbones
from tiny import Tiny, TinyElastic

if "PYTEST_XDIST_WORKER" in os.environ:  # one core each, also for the commands that tests start
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

_built: dict[str, TinyElastic] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(autouse=True)
def _same_noise() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=list(backbones))
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """A fresh dense transformer of each backbone."""
    return Tiny(backbones[request.param])


@pytest.fixture
def tiny_flux() -> Tiny:
    """A fresh dense FLUX transformer."""
    return Tiny(backbones["flux"])


def _shared(name: str) -> Iterator[TinyElastic]:
    if name not in _built:
        _built[name] = TinyElastic(Tiny(backbones[name]))
    elastic = _built[name]
    elastic.as_new()
    yield elastic
    elastic.as_new()


@pytest.fixture(params=list(backbones))
def routed(request: pytest.FixtureRequest) -> Iterator[TinyElastic]:
    """An elastic transformer of each backbone, whose routers disagree; built once, put back after each test."""
    yield from _shared(request.param)


@pytest.fixture
def routed_flux() -> Iterator[TinyElastic]:
    """The same for FLUX alone."""
    yield from _shared("flux")
