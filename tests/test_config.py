"""Presets of the paper, and what the configuration refuses, with the words it uses."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from elastic_dit import PRESETS, ElasticConfig, preset
from elastic_dit.config import CONFIG_NAME
from elastic_dit.errors import ConfigError, ElasticDiTError, UnknownNameError

PAPER = {
    "qwen-image-base": (0.6, 0.65, 0.10, 5),
    "qwen-image-turbo": (0.5, 0.6, 0.15, 10),
    "flux": (0.5, 0.6, 0.10, 3),
    "hunyuan3d": (0.45, 0.5, 0.15, 5),
}


@pytest.mark.parametrize("name", PAPER)
def test_presets_of_section_4_1(name: str) -> None:
    config = preset(name)
    assert (config.rho_g, config.rho_w, config.delta, config.max_reuse) == PAPER[name]
    assert (config.tau, config.width_ratios, config.budget_weight) == (0.5, (0.25, 0.5, 0.75, 1.0), 1.0)
    assert set(PRESETS) == set(PAPER)


def test_a_preset_with_changes() -> None:
    config = preset("flux", tau=0.6, max_reuse=0)
    assert (config.tau, config.max_reuse, config.rho_g) == (0.6, 0, 0.5)
    assert preset("flux").tau == 0.5


def test_unknown_preset() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown preset 'qwen-image-bas'; known: flux, hunyuan3d, .*"):
        preset("qwen-image-bas")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"taw": 0.5}, r"unknown key 'taw' \(did you mean 'tau'\?\)"),
        ({"nothing_like_it": 1}, "unknown key 'nothing_like_it'$"),
        ({"tau": 2}, r"tau = 2: .*less than or equal to 1"),
        ({"rho_g": 0.0}, r"rho_g = 0\.0: .*greater than 0"),
        ({"max_reuse": -1}, "max_reuse = -1"),
        ({"max_age": 0}, "max_age = 0"),
        ({"init_keep_prob": 1.0}, "init_keep_prob"),
        ({"budget": "flops"}, r"budget = 'flops': .*'compute'"),
        ({"width_streams": ["audio"]}, "width_streams"),
        ({"width_ratios": (0.5, 0.75)}, "rise to 1"),
        ({"width_ratios": (0.5, 0.25, 1.0)}, "rise to 1"),
        ({"width_ratios": (0.0, 1.0)}, "rise to 1"),
        ({"width_ratios": ()}, "rise to 1"),
        ({"width_ratios": (0.5, 0.5, 1.0)}, "rise to 1"),
        ({"taw": 1, "rho": 2}, "taw.*; .*rho"),
        ({"init_path": ((0.9, 0, 0.5),)}, "needs a budget_range"),
        ({"init_path": ((0.7, 0, 0.5), (0.9, 1, 0.5)), "budget_range": (0.3, 1.0)}, "shares of init_path must fall"),
        ({"init_path": ((0.9, 0, 0.6),), "budget_range": (0.3, 1.0)}, "block 0 to width 0.6 .* one of width_ratios"),
        ({"init_path": ((0.9, 2, 0.5), (0.8, 2, 0.5)), "budget_range": (0.3, 1.0)}, "block 2 .* narrower than before"),
        ({"init_path": (), "init_route": (1.0,), "budget_range": (0.3, 1.0)}, "init_route and init_path both say"),
    ],
)
def test_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ElasticConfig.of(**values)
    assert isinstance(caught.value, ElasticDiTError)
    assert isinstance(caught.value, ValueError)
    assert "pydantic" not in str(caught.value)


def test_assignment_is_checked_too() -> None:
    config = ElasticConfig()
    with pytest.raises(ValidationError, match="tau"):
        config.tau = -1


def test_every_field_says_what_it_means() -> None:
    for name, field in ElasticConfig.model_fields.items():
        assert field.description, name


def test_saved_config_reads_back(tmp_path: Path) -> None:
    config = preset("hunyuan3d", always_open=(0, -1), max_age=4)
    config.save(tmp_path)
    assert ElasticConfig.model_validate_json((tmp_path / CONFIG_NAME).read_text()) == config
