import pytest

from elastic_dit.bench.compare import Comparison
from elastic_dit.report.demo_tables import compute_table, environment_table, headline, latency_table
from elastic_dit.report.tables import number, percent, seconds, times


@pytest.mark.parametrize(
    ("low", "median", "high", "text"),
    [
        (0.0102, 0.0123, 0.0131, "12.3 ms (10.2–13.1)"),
        (0.12, 0.4018, 0.5, "402 ms (120–500)"),
        (1.5, 2.0, 2.25, "2.00 s (1.50–2.25)"),
        (1.5, 1.5, 1.5, "1.50 s"),
    ],
)
def test_seconds(low: float, median: float, high: float, text: str) -> None:
    assert seconds({"min": low, "median": median, "max": high}) == text


def test_numbers_that_are_not_there() -> None:
    assert percent(None) == number(None, ".2f") == "–"
    assert percent(0.5214) == "52.1%"
    assert times({"min": 1.5, "median": 1.75, "max": 2.0}) == "1.75× (1.50–2.00)"


def test_tables_show_the_records_numbers(reread: Comparison) -> None:
    record = reread.record
    results = record.results
    rows = latency_table(record).rows
    assert [row[0] for row in rows] == [
        "step, batch 1",
        "image, batch 1",
        "step, batch 3",
        "image, batch 3",
        "step, batch 3, frozen",
    ]
    assert rows[-1][-1] == times(results["frozen"]["step_speedup"])
    assert rows[2][1:] == (
        seconds(results["latency"][1]["dense_step_seconds"]),
        seconds(results["latency"][1]["elastic_step_seconds"]),
        times(results["latency"][1]["step_speedup"]),
    )
    *prompts, total, frozen = compute_table(record).rows
    assert frozen[:2] == ("all prompts, frozen", f"{results['frozen']['compute']['flops_share']:.1%}")
    assert [row[0] for row in prompts] == [f"“{prompt}”" for prompt in record.config["prompts"]]
    assert total[1:] == (
        f"{results['compute']['flops_share']:.1%}",
        "66.7%",
        "30.0%",
        "0.64",
        f"{results['fidelity']['psnr']:.1f}",
        f"{results['fidelity']['ssim']:.3f}",
    )


def test_headline_and_environment(reread: Comparison) -> None:
    record = reread.record
    values = [value for value, _ in headline(record)]
    assert values[0] == f"{record.results['latency'][0]['step_speedup']['median']:.2f}×"
    facts = dict(environment_table(record).rows)
    assert facts["command"] == "elastic-dit demo"
    assert facts["commit"] == record.environment.commit
    assert record.environment.device in facts["device"]
    assert facts["model"].startswith("FluxTransformer2DModel, 1 transformer_blocks + 2 single_transformer_blocks")
