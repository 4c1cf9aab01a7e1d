from pathlib import Path
from typing import Any

import pytest
import torch

from elastic_dit.bench.compare import Bench, Comparison
from elastic_dit.bench.lane import Lane
from elastic_dit.bench.speed import speed
from elastic_dit.bench.training import training
from elastic_dit.evaluation.sampling import SampleSettings
from elastic_dit.models.loading import load_pipeline
from elastic_dit.records import RunRecord
from emoji import STEPS, save_pair
from small import small_flux

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


MADE_WITH = {"size": "flux-tiny", "device_type": "cpu"}


@pytest.fixture(scope="session")
def lane() -> Lane:
    return Lane(small_flux(), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def speed_once(lane: Lane) -> RunRecord:
    return speed(lane, batch=1, steps=4, repeats=3, compiled=False, command="elastic-dit bench", config=MADE_WITH)


@pytest.fixture
def speed_record(speed_once: RunRecord) -> RunRecord:
    """A real measurement, with one step of it made up block by block."""
    record = speed_once.model_copy(deep=True)
    blocks = [
        ("transformer_blocks", 0.004, 0.00412, True, False, 1.0),
        ("transformer_blocks", 0.004, 0.0001, False, False, 1.0),
        ("single_transformer_blocks", 0.002, 0.0002, True, True, 0.5),
        ("single_transformer_blocks", 0.002, 0.0012, True, False, 0.25),
    ]
    names = ("list", "dense_seconds", "elastic_seconds", "keep", "reuse", "width")
    steps = [dict(zip(names, block, strict=True)) for block in blocks]
    record.results["timeline"] = {"step": 2, "branch": 0, "blocks": steps}
    return record


@pytest.fixture(scope="session")
def training_once(lane: Lane) -> RunRecord:
    return training(lane, batch=1, repeats=2, command="elastic-dit bench", config=MADE_WITH)


@pytest.fixture
def training_record(training_once: RunRecord) -> RunRecord:
    """A real measurement."""
    return training_once.model_copy(deep=True)


@pytest.fixture
def peers_record(speed_record: RunRecord) -> RunRecord:
    """Peers with made-up numbers, many of them close together."""
    dense, *_, ours = speed_record.results["rows"][:5]
    methods = [("fewer-steps", 0.5, 2.0), ("teacache", 0.51, 0.6), ("cache-dit", 0.53, 0.12), ("compiled", 1.0, None)]
    rows = [dense, ours | {"name": "elastic"}]
    for name, share, setting in methods:
        about = {"about": f"{name} | in words", "source": "a paper", "setting": setting, "setting_name": "threshold"}
        rows.append(made_up(name, share, 0.97) | about)
    results = {"parameters": 5000, "rows": rows, "left_out": [{"name": "magcache", "why": "does not fit"}]}
    return speed_record.model_copy(update={"kind": "peers", "results": results})


@pytest.fixture
def scaling_record(speed_record: RunRecord) -> RunRecord:
    """Points with made-up numbers."""
    values = {"batch": (1, 8), "tokens": (64, 256, 1024), "blocks": (4, 8), "steps": (4, 28)}
    points = [
        {
            "axis": axis,
            "value": value,
            "rows": [made_up("dense", 1, 1), made_up("all open", 1, 0.98), made_up(CACHE, 0.5, 0.95)],
        }
        for axis, several in values.items()
        for value in several
    ]
    return speed_record.model_copy(update={"kind": "scaling", "results": {"parameters": 5000, "points": points}})


CACHE = "skip + width + cache"


def made_up(name: str, share: float, realised: float) -> dict[str, Any]:
    """A row whose ranges are 10% wide."""

    def spread(value: float) -> dict[str, float]:
        return {"median": value, "min": 0.95 * value, "max": 1.05 * value}

    return {
        "name": name,
        "reference": "dense",
        "flops_share": share,
        "step_seconds": spread(0.4 * share / realised),
        "ratio": spread(share / realised),
        "speedup": spread(realised / share),
        "predicted_speedup": 1 / share,
        "realised": spread(realised),
    }
