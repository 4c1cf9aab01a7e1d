"""Flow loss against compute on a tiny pipeline and real sprites."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elastic_dit import ElasticConfig, elasticize
from elastic_dit.evaluation.flow_loss import judge, noisy_batches
from elastic_dit.evaluation.variants import interval
from elastic_dit.models.loading import load_pipeline
from elastic_dit.records import RunRecord
from elastic_dit.report.evaluation_plots import COLORS, loss_plot
from elastic_dit.report.evaluation_tables import loss_tables
from elastic_dit.training.config import DataConfig
from elastic_dit.training.data.cache import EncodedDataset, encode
from elastic_dit.training.data.prepare import prepare
from elastic_dit.training.families.base import Family, family_of
from emoji import save_pair

SPRITES = Path(__file__).parents[1] / "data" / "sprites"
SAMPLES = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def family(folder: Path) -> Family:
    model, _ = save_pair(folder)
    return family_of(load_pipeline(model))


@pytest.fixture(scope="module")
def data(family: Family, folder: Path) -> EncodedDataset:
    prepare(folder / "data", SPRITES, scenes=16)
    source = DataConfig(path=str(folder / "data" / "train"), resolution=16, cache=folder / "cache", limit=SAMPLES)
    return encode(family, source, source.path, quiet=True)


@pytest.fixture(scope="module")
def many(folder: Path, family: Family) -> Path:
    """An adapter with a range of budgets: at a small one all blocks are closed."""
    elastic = elasticize(family.pipeline, ElasticConfig.of(router_hidden_size=8, budget_range=(0.2, 1.0)))
    for router in elastic.routers:
        torch.nn.init.constant_(router.dial.gate_slope, 0.8)
    return elastic.save(folder / "many")


@pytest.fixture(scope="module")
def record(family: Family, data: EncodedDataset, folder: Path, many: Path) -> RunRecord:
    adapters = [str(folder / "adapter"), str(many)]
    return judge(family, data, adapters, [0.1, 0.3, 1.0], samples=SAMPLES, batch=4, seed=3)


def test_a_row_for_each_budget_in_the_range(record: RunRecord, many: Path) -> None:
    rows = record.results["rows"]
    assert [row["budget"] for row in rows] == [None, None, 0.3, 1.0]
    assert [row["name"] for row in rows[2:]] == [str(many)] * 2


def test_losses_are_those_of_the_model_as_it_is_used(record: RunRecord, family: Family, data: EncodedDataset) -> None:
    """The dense row by hand, sample by sample; an open elastic model loses nothing, a closed one much."""
    by_hand: list[float] = []
    with torch.no_grad():
        for inputs, noisy in noisy_batches(family, data, SAMPLES, 4, 3):
            predicted = family.pipeline.transformer(**inputs, return_dict=False)[0]
            by_hand += [float(((a - b) ** 2).mean()) for a, b in zip(predicted, noisy.velocity, strict=True)]
    assert record.samples["dense_loss"] == pytest.approx(by_hand, rel=1e-5)
    dense, known, closed, opened = record.results["rows"]
    assert dense["loss"] == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert opened["excess"] == pytest.approx(0, abs=1e-6)
    assert opened["flops_share"] == pytest.approx(1, abs=0.1)
    assert closed["flops_share"] < 0.1 < known["flops_share"] < opened["flops_share"]
    assert closed["excess"] != pytest.approx(0, abs=1e-4)
    assert closed["excess"] == pytest.approx(closed["loss"] - dense["loss"])


def test_all_models_see_the_same_noise(family: Family, data: EncodedDataset) -> None:
    """Noise levels are spread evenly, whatever the size of a batch."""
    first = next(noisy_batches(family, data, SAMPLES, SAMPLES, 3))
    parts = list(noisy_batches(family, data, SAMPLES, 4, 3))
    sigma = torch.cat([noisy.sigma for _, noisy in parts])
    assert torch.equal(sigma, first[1].sigma)
    assert sigma.sort().values.tolist() == pytest.approx([(i + 0.5) / SAMPLES for i in range(SAMPLES)])
    assert [len(noisy.sigma) for _, noisy in parts] == [4, 4, 2]


def test_models_of_equal_compute_are_compared_sample_by_sample(record: RunRecord) -> None:
    rows, losses = record.results["rows"], list(record.samples.values())
    near = [
        (a, b)
        for a in range(len(rows))
        for b in range(a + 1, len(rows))
        if abs(rows[a]["flops_share"] - rows[b]["flops_share"]) <= 0.03
    ]
    pairs = {(pair["first"], pair["second"]): pair for pair in record.results["pairs"]}
    assert list(pairs) == near
    for (a, b), pair in pairs.items():
        apart = np.array(losses[a]) - np.array(losses[b])
        assert pair["difference"] == pytest.approx(apart.mean())
        assert pair["interval"][0] <= apart.mean() <= pair["interval"][1]


def test_the_plot_shows_every_model(record: RunRecord) -> None:
    image = Image.open(io.BytesIO(loss_plot(record))).convert("RGB")
    colors = {color for _, color in image.getcolors(1 << 24)}
    assert all(tuple(bytes.fromhex(color.removeprefix("#"))) in colors for color in COLORS[:2])
    assert tuple(bytes.fromhex(COLORS[2].removeprefix("#"))) not in colors


def test_interval() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, 400)
    low, high = interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_the_tables_show_every_row(record: RunRecord) -> None:
    losses, levels, *_ = loss_tables(record)
    assert [row[:2] for row in losses.rows] == [row[:2] for row in levels.rows]
    assert losses.rows[0][:3] == ("dense", "–", "100.0%")
    row = record.results["rows"][2]
    low, high = row["loss_interval"]
    assert losses.rows[2][:2] == ("many", "0.3")
    assert losses.rows[2][3] == f"{row['loss']:.4f} ± {(high - low) / 2:.4f}"
    for table in (losses, levels):
        assert {len(cells) for cells in table.rows} == {len(table.header)}
