"""Images beside the dense model's: who is on the transformer, what is compared, what was spent."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elastic_dit import ElasticConfig, elasticize
from elastic_dit.errors import ConfigError
from elastic_dit.evaluation.fidelity import fidelity
from elastic_dit.evaluation.images import ENDLESS, judge_images
from elastic_dit.evaluation.sampling import SampleSettings, sample_images
from elastic_dit.evaluation.variants import variants
from elastic_dit.models.loading import load_pipeline
from emoji import save_pair

PROMPTS = ["a dog", "a cat", "a red apple"]
SHORT = SampleSettings(steps=3, height=16, width=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    pipe = load_pipeline(save_pair(folder)[0])
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def many(folder: Path, pipe: Any) -> str:
    """An adapter with a range of budgets whose full budget is the dense model."""
    elastic = elasticize(pipe, ElasticConfig.of(router_hidden_size=8, budget_range=(0.2, 1.0), max_reuse=0))
    for router in elastic.routers:
        torch.nn.init.constant_(router.dial.gate_slope, 0.8)
    return str(elastic.save(folder / "many"))


def test_variants_leave_the_transformer_dense(pipe: Any, folder: Path, many: str) -> None:
    names = []
    for name, budget, elastic in variants(pipe.transformer, [str(folder / "adapter"), many], [0.1, 0.4, 1.0]):
        names.append((name, budget))
        assert (elastic is None) == (not hasattr(pipe.transformer, "_diffusers_hook"))
        assert elastic is None or budget is None or elastic.budget == pytest.approx(budget)
    assert names == [("dense", None), (str(folder / "adapter"), None), (many, 0.4), (many, 1.0)]
    assert not hasattr(pipe.transformer, "_diffusers_hook")


def test_an_adapter_without_a_budget_in_its_range_is_refused(pipe: Any, folder: Path, many: str) -> None:
    """At once, not when its turn comes."""
    with pytest.raises(ConfigError, match=r"many was trained for budgets from 0.2 to 1; --budgets asks for 0.1, 0.15"):
        next(variants(pipe.transformer, [str(folder / "adapter"), many], [0.1, 0.15]))


def test_rows(pipe: Any, folder: Path, many: str) -> None:
    adapter = str(folder / "adapter")
    rows, raw = judge_images(pipe, [adapter, many], [0.2, 1.0], PROMPTS, SHORT, batch=2, seed=5)
    assert [(row["name"], row["budget"]) for row in rows] == [(adapter, None), (many, 0.2), (many, 1.0)]
    known, closed, opened = rows
    assert opened["psnr"] == ENDLESS  # the dense model itself
    assert opened["ssim"] == pytest.approx(1)
    assert closed["flops_share"] < known["flops_share"] < opened["flops_share"]
    assert closed["psnr"] < opened["psnr"]

    dense = sample_images(pipe, PROMPTS, [5, 6, 7], SHORT)
    for _, budget, elastic in variants(pipe.transformer, [many], [0.2]):
        if elastic is not None:
            images = sample_images(pipe, PROMPTS, [5, 6, 7], SHORT)
            own = [fidelity(*pair).psnr for pair in zip(images, dense, strict=True)]
            assert raw[f"{many}_{budget}_psnr_db"] == pytest.approx(own, rel=0.01)
    low, high = closed["psnr_interval"]
    assert low <= closed["psnr"] <= high
    assert closed["psnr"] == pytest.approx(np.mean(raw[f"{many}_0.2_psnr_db"]))
