from pathlib import Path

import pytest

from elastic_dit.bench.compare import Bench, Comparison
from elastic_dit.bench.sampling import SampleSettings
from elastic_dit.models.loading import load_pipeline
from elastic_dit.records import RunRecord
from emoji import STEPS, save_pair

PROMPTS = ["a red apple", "a <b>bold</b> & crowded scene", "a house"]


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A real measurement of a tiny model."""
    model, adapter = save_pair(tmp_path_factory.mktemp("pair"))
    settings = SampleSettings(steps=STEPS, guidance=1.0, height=32, width=32)
    return Bench(load_pipeline(model), str(adapter)).compare(PROMPTS, settings, repeats=2, command="elastic-dit demo")


@pytest.fixture(scope="session")
def reread(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """The same, its record from the file: what a report is made from."""
    file: Path = tmp_path_factory.mktemp("record") / "run.json"
    comparison.record.write(file)
    return Comparison(RunRecord.read(file), comparison.dense, comparison.elastic)
