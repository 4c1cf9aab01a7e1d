from pathlib import Path
from typing import get_args

import pytest
import torch
from diffusers.optimization import SchedulerType, get_scheduler

from elastic_dit.errors import ConfigError
from elastic_dit.training.config import Schedule, TrainConfig
from elastic_dit.training.yaml_file import read_yaml

TEXT = """
output: x
model: emoji-flux:tiny
steps: 1
data: {path: y, resolution: 16}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(TEXT)
    return file


def test_a_change_inside_a_section_keeps_the_rest_of_it(file: Path) -> None:
    changes = [("data.resolution", 32), ("elastic.rho_g", 0.4), ("elastic.tau", 0.6), ("steps", 5)]
    config = TrainConfig.load(file, changes)
    assert (config.steps, config.data.path, config.data.resolution) == (5, "y", 32)
    assert config.elastic and (config.elastic.rho_g, config.elastic.tau) == (0.4, 0.6)
    assert TrainConfig.load(file).data.resolution == 16


def test_clear_errors(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read a training config .*none\.yaml"):
        TrainConfig.load(tmp_path / "none.yaml")
    for text, said in (
        (TEXT + "step: 3", "did you mean 'steps'"),
        (TEXT + "steps: 2", "'steps' is there twice"),
        (TEXT + "elastic: {tau: 0.5, rho_g: 0.5, tau: 0.6}", "'tau' is there twice"),
        (TEXT + "optimizer: {schedule: cosin}", r"optimizer\.schedule = 'cosin': .*'constant_with_warmup', .*'cosine'"),
        (TEXT + "[a, b]: 3", r"a key is a list or a mapping.*line 6"),
        (TEXT + "elastic: {{tau: 0.5}}", "a key is a list or a mapping"),
        ("- output", "list"),
        ("a: b: c", "not valid YAML"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=rf"(?s){said}"):
            TrainConfig.load(file)


def test_the_schedules_are_those_of_diffusers() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)])
    for name in get_args(Schedule):
        assert get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=2)
    assert {*get_args(Schedule), "piecewise_constant"} == {name.value for name in SchedulerType}


def test_what_is_merged_may_be_changed(tmp_path: Path) -> None:
    """`<<` brings the keys of another mapping, also of one that has some by `<<` itself."""
    file = tmp_path / "merged.yaml"
    file.write_text("a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, y: 3}\n")
    assert read_yaml(file, "three")["c"] == {"x": 2, "y": 3}
