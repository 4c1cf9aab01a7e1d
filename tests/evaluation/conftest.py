import pytest

from studies import Subject, subject


@pytest.fixture(scope="session")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A tiny pipeline with an adapter whose routes are known, and scenes to try them on."""
    return subject(tmp_path_factory.mktemp("studied"))
