"""From a dense model to a static one: prune, train, evaluate."""

import re
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from elastic_dit import checkpoint
from elastic_dit.records import RunRecord
from elastic_dit.training.data.prepare import prepare
from shell import Run, assert_refused

SPRITES = Path(__file__).parents[1] / "data" / "sprites"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare(folder, SPRITES, scenes=16)
    return folder / "train"


def test_prune_then_train_then_evaluate(run: Run, pair: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    size = ("--samples", 8, "--resolution", 16, "--cache", tmp_path / "cache", "--threads", 1)
    start = tmp_path / "start"
    outcome = run("prune", data, "--model", pair[0], "--output", start, "--budget", 0.6, "--batch", 4, *size)
    assert outcome.code == 0, outcome.err
    assert "of 3 blocks, 60.0% of FLOPs" in outcome.out
    route = checkpoint.read(start).config.route
    assert route is not None

    config = {
        "output": str(tmp_path / "run"),
        "model": str(pair[0]),
        "adapter": str(start),
        "data": {"path": str(data), "validation": str(data), "resolution": 16, "limit": 16},
        "flow": {"distillation": 1.0},
        "steps": 3,
        "batch_size": 4,
        "threads": 1,
    }
    config["data"] |= {"cache": str(tmp_path / "cache")}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    outcome = run("train", tmp_path / "train.yaml")
    assert outcome.code == 0, outcome.err
    trained = checkpoint.read(tmp_path / "run" / "adapter")
    assert trained.config.route == route
    before, after = (
        load_file(folder / "elastic_model.safetensors") for folder in (start, tmp_path / "run" / "adapter")
    )
    lists = [f"transformer.{name}." for name in ("transformer_blocks.0", "single_transformer_blocks.0")]
    lists.append("transformer.single_transformer_blocks.1.")
    for prefix, width in zip(lists, route, strict=True):
        own = [name for name in before if name.startswith(prefix)]
        assert any(not before[name].equal(after[name]) for name in own) == bool(width), prefix

    assert_refused(run("calibrate", "--model", pair[0], "--adapter", start), "one fixed route")

    files = ("--json", tmp_path / "out.json")
    outcome = run("evaluate", data, "--model", pair[0], "--adapter", tmp_path / "run" / "adapter", *size, *files)
    assert outcome.code == 0, outcome.err
    dense, static = RunRecord.read(tmp_path / "out.json").results["rows"]
    assert static["flops_share"] == pytest.approx(0.6, rel=0.02)
    assert static["loss"] != dense["loss"]


def test_bad_input(run: Run, pair: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    common = ("--model", pair[0], "--cache", tmp_path / "cache", "--resolution", 16, "--samples", 4)
    output = ("--output", tmp_path / "out")
    assert_refused(run("prune", data, *common, *output, "--method", "greddy"), "pruning method", "greddy", "greedy")
    assert_refused(run("prune", data, *common, *output, "--budget", 1.2), "budget is 1.2")
    assert_refused(run("prune", tmp_path / "none", *common, *output), "none")
    assert_refused(run("prune", data, *common), "--output")
    assert not (tmp_path / "out").exists()


def test_a_budget_of_time(run: Run, pair: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    common = ("--model", pair[0], "--cache", tmp_path / "cache", "--resolution", 16, "--threads", 1, "--samples", 4)
    outcome = run("prune", data, *common, "--of", "time", "--budget", 0.7, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert re.search(r"[\d.]+% of FLOPs, [\d.]+% of the time", outcome.out)
    refused = run("prune", data, *common, "--of", "time", "--down-to", 0.3, "--output", tmp_path / "no")
    assert_refused(refused, "--down-to", "--of time")


def test_a_route_for_each_range_of_noise_levels(run: Run, pair: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    common = ("--model", pair[0], "--cache", tmp_path / "cache", "--resolution", 16, "--threads", 1)
    levels = ("--levels", 2, "--samples", 4, "--batch", 2)
    outcome = run("prune", data, *common, *levels, "--output", tmp_path / "out", "--budget", 0.6)
    assert outcome.code == 0, outcome.err
    assert "for noise levels 0 to 0.5" in outcome.out and "for noise levels 0.5 to 1" in outcome.out
    config = checkpoint.read(tmp_path / "out").config
    assert config.route is None and config.init_schedule is not None and len(config.init_schedule) == 2

    refused = run("prune", data, *common, *levels, "--output", tmp_path / "no", "--method", "random")
    assert_refused(refused, "2 levels", "random", "greedy")


def test_a_route_for_every_budget(run: Run, pair: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    common = ("--model", pair[0], "--cache", tmp_path / "cache", "--resolution", 16, "--threads", 1, "--samples", 4)
    outcome = run("prune", data, *common, "--down-to", 0.3, "--budget", 0.6, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "from 100% to 30% of FLOPs; the dial stands at 60%" in outcome.out
    places = ("--adapter", tmp_path / "out", "--output", tmp_path / "forecast", "--cache", tmp_path / "cache")
    size = ("--model", pair[0], "--resolution", 16, "--images", 2, "--steps", 4, "--threads", 1)
    outcome = run("forecast", data, *size, *places, "--dial", 0.8, "--budget", 0.5)
    assert outcome.code == 0, outcome.err
    assert checkpoint.read(tmp_path / "forecast").config.default_budget == 0.8
    assert_refused(run("forecast", data, *size, *places, "--dial", 0.2), "budget = 0.2", "trained for 0.3 to 1")
    config = checkpoint.read(tmp_path / "out").config
    assert config.init_path and config.budget_range == (0.3, 1.0) and config.default_budget == 0.6

    shared = ("--output", tmp_path / "shared", "--cache", tmp_path / "cache")
    outcome = run("allocate", data, *size, "--shift", 2, "--adapter", tmp_path / "out", *shared)
    assert outcome.code == 0, outcome.err
    assert "budgets by step, from the first to the last, where the mean is 60%" in outcome.out
    assert checkpoint.read(tmp_path / "shared").config.allocate_at == 2
    assert_refused(run("allocate", data, *size, "--adapter", pair[1], *shared), "the adapter knows one budget")

    both = run("prune", data, *common, "--down-to", 0.3, "--levels", 2, "--output", tmp_path / "no")
    assert_refused(both, "--down-to", "--levels")


def test_noise_levels_weighed_by_their_images(run: Run, pair: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    common = ("--model", pair[0], "--cache", tmp_path / "cache", "--resolution", 16, "--threads", 1)
    levels = ("--levels", 3, "--samples", 4, "--batch", 2, "--steps", 8, "--guidance", 3, "--output", tmp_path / "out")
    outcome = run("prune", data, *common, *levels, "--budget", 0.6)
    assert outcome.code == 0, outcome.err
    assert "for noise levels 0 to 0.333 (2 of 8 steps, worth " in outcome.out
    outcome = run("prune", data, *common, *levels, "--shift", 2)
    assert "for noise levels 0 to 0.333 (1 of 8 steps, worth " in outcome.out

    alone = ("--samples", 4, "--steps", 8, "--output", tmp_path / "no")
    assert_refused(run("prune", data, *common, *alone), "--steps", "--levels 2")


def test_forecasts_of_the_dense_model(run: Run, pair: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    options = (
        "--steps",
        6,
        "--images",
        2,
        "--resolution",
        16,
        "--threads",
        1,
        "--max-forecast",
        1,
        "--max-forecast",
        2,
    )
    places = ("--model", pair[0], "--output", tmp_path / "adapter", "--cache", tmp_path / "cache")
    outcome = run("forecast", data, "--budget", 0.7, *options, *places)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("of 12 forwards computed") > 4, "two numbers in a row, two orders, and guidance"
    assert "guidance reused" in outcome.out
    assert "1 in a row reuse guidance" in outcome.out
    places = ("--max-guidance-reuse", 0, *places)
    outcome = run("forecast", data, "--budget", 0.7, *options, *places)
    assert outcome.out.count("of 12 forwards computed") == 4, "two numbers in a row, two orders"
    config = checkpoint.read(tmp_path / "adapter").config
    assert config.max_forecast in (1, 2)
    assert f"{config.max_forecast} in a row forecast, order {config.forecast_order}" in outcome.out.splitlines()[0]
    assert run("forecast", data, "--budget", 0.7, "--shift", 3, *options, *places).code == 0
    spaced = checkpoint.read(tmp_path / "adapter").config
    assert spaced.forecast_below > config.forecast_below, "the same steps, at higher noise"
    assert_refused(run("forecast", data, "--shift", 0, *options, *places), "--shift", "above 0")
    outcome = run("forecast", data, "--budget", 0.7, "--unguided", 2, *options, *places)
    assert "no guidance in the first 2 steps" in outcome.out
    assert 0.5 < checkpoint.read(tmp_path / "adapter").config.guidance_from < 1
    refused = run("forecast", data, "--unguided", 6, *options, *places)
    assert_refused(refused, "unguided = 6 leaves none of 6 steps with guidance")
    refused = run("forecast", data, "--budget", 0.1, *options, *places)
    assert_refused(refused, "spends 33.3% or more", "the budget is 10.0%")
