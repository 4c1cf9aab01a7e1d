"""Runs of the tiny transformers that the baselines are tried on."""

import pytest

from runs import Runs


@pytest.fixture
def flux() -> Runs:
    return Runs("flux")


@pytest.fixture
def qwen() -> Runs:
    return Runs("qwen-image", branches=2)


@pytest.fixture(params=["flux", "qwen-image"])
def runs(request: pytest.FixtureRequest) -> Runs:
    """FLUX with one guidance pass in a step, Qwen-Image with two."""
    return Runs(request.param, steps=6, branches=1 if request.param == "flux" else 2)
