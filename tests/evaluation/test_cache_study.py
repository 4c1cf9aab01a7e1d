"""What reuse gives, on a block just above the threshold."""

import pytest

from elastic_dit import load, restore
from elastic_dit.evaluation.cache_study import list_cases, study_cache
from elastic_dit.evaluation.fidelity import fidelity
from elastic_dit.evaluation.sampling import SampleSettings, sample_images
from elastic_dit.records import RunRecord
from emoji import STEPS
from studies import SIZE, Subject

SETTINGS = SampleSettings(steps=STEPS, height=SIZE, width=SIZE)
DELTAS, REUSES = (0.0, 0.01, 0.1), (1, 3)


@pytest.fixture(scope="module")
def record(studied: Subject) -> RunRecord:
    prompts = [one.prompt for one in studied.scenes[:3]]
    return study_cache(
        studied.family.pipeline, studied.adapter, prompts, SETTINGS, DELTAS, REUSES, 0.1, batch=2, seed=3
    )


def rows_of(record: RunRecord, curve: str) -> list[dict]:
    return [row for row in record.results["rows"] if row["curve"] == curve]


def test_three_curves(studied: Subject) -> None:
    elastic = load(studied.family.pipeline, studied.adapter)
    cases = list_cases(elastic, DELTAS, REUSES, 0.1)
    restore(studied.family.pipeline)
    assert [case.setting[:3] for case in cases] == [
        (0.5, 0.0, 0),
        (0.5, 0.01, 3),
        (0.5, 0.1, 3),
        (0.5, 0.1, 1),
        (0.5, 0.1, 3),
        (0.5, 0.0, 0),
        (0.51, 0.0, 0),
        (0.6, 0.0, 0),
    ]


def test_the_border_block_is_run_reused_or_skipped(record: RunRecord) -> None:
    """p of the third block is 0.52: above the first two thresholds, in the band of 0.1 and below a tau of 0.6."""
    off, narrow, wide = rows_of(record, "delta")
    assert [row["open_rate"] for row in (off, narrow, wide)] == pytest.approx([2 / 3] * 3)
    assert [row["reuse_rate"] for row in (off, narrow, wide)] == pytest.approx([0, 0, 3 / 10])
    once, thrice = rows_of(record, "max_reuse")
    assert once["reuse_rate"] == pytest.approx(2 / 10)
    assert {**thrice, "curve": "delta", "value": 0.1} == wide
    same, still_open, skipped = rows_of(record, "skip")
    assert same["psnr"] == off["psnr"] and still_open["flops_share"] == off["flops_share"]
    assert skipped["open_rate"] == pytest.approx(1 / 3)
    assert skipped["flops_share"] < wide["flops_share"] < once["flops_share"] < off["flops_share"]
    assert len(record.samples) == 2 * 6  # of settings that are the same, one is drawn


def test_closeness_is_to_the_dense_images(record: RunRecord, studied: Subject) -> None:
    pipe, prompts = studied.family.pipeline, [one.prompt for one in studied.scenes[:3]]
    texts, seeds = [one.caption for one in prompts], [3 + one.seed for one in prompts]
    dense = sample_images(pipe, texts, seeds, SETTINGS)
    elastic = load(pipe, studied.adapter)
    elastic.tau = 0.6
    images = sample_images(pipe, texts, seeds, SETTINGS)
    restore(pipe)
    expected = [fidelity(*pair).psnr for pair in zip(images, dense, strict=True)]
    assert record.samples["tau_0.6_delta_0_K_0_psnr_db"] == pytest.approx(expected, rel=0.01)


def test_the_record_keeps_the_adapters_own_setting(record: RunRecord) -> None:
    own = record.config["elastic"]
    assert (own["tau"], own["delta"], own["max_reuse"]) == (0.5, 0.1, 3)
