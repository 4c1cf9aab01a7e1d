"""The calibration table: which setting a speed-up gets."""

from pathlib import Path

import pytest

from elastic_dit import ElasticConfig, elasticize
from elastic_dit.calibration import CALIBRATION_NAME, Calibration, Point, Setting
from elastic_dit.errors import CheckpointError, ConfigError
from elastic_dit.records import Environment
from elastic_dit.verbs import load
from tiny import Tiny

CACHED, PLAIN = (0.1, 3), (0.0, 0)


def point(tau: float, speedup: float, ssim: float, cache: tuple[float, int] = PLAIN) -> Point:
    setting = Setting(tau, *cache)
    return Point(setting=setting, speedup=speedup, flops_share=1 / speedup, psnr=None, ssim=ssim, samples={})


def table(*points: Point) -> Calibration:
    return Calibration(command="", environment=Environment.here(), config={}, points=list(points))


def test_tau_lies_between_the_neighbours() -> None:
    calibration = table(point(0.4, 2.0, 0.8), point(0.0, 1.0, 1.0), point(0.8, 3.0, 0.5))
    assert calibration.at_speedup(1.0) == Setting(0.0, 0.0, 0)
    assert calibration.at_speedup(2.0).tau == pytest.approx(0.4)
    assert calibration.at_speedup(2.25).tau == pytest.approx(0.5)
    assert calibration.at_speedup(3.0).tau == pytest.approx(0.8)


def test_of_two_ways_the_one_closer_to_dense_is_taken() -> None:
    plain = [point(0.0, 1.0, 1.0), point(0.5, 2.0, 0.7), point(0.9, 4.0, 0.3)]
    cached = [point(0.0, 1.1, 0.99, CACHED), point(0.5, 2.5, 0.8, CACHED)]
    calibration = table(*plain, *cached)
    assert calibration.at_speedup(2.0).delta == 0.1
    assert calibration.at_speedup(1.05).delta == 0.0
    assert calibration.at_speedup(3.0).delta == 0.0


def test_a_higher_tau_that_is_no_faster_is_left_out() -> None:
    calibration = table(point(0.0, 1.0, 1.0), point(0.2, 1.8, 0.9), point(0.3, 1.7, 0.9), point(0.4, 2.0, 0.8))
    assert [p.setting.tau for p in calibration.curves()[0]] == [0.0, 0.2, 0.4]
    assert calibration.at_speedup(1.9).tau == pytest.approx(0.3)


@pytest.mark.parametrize("speedup", [0.5, 3.5])
def test_what_was_not_measured_is_refused(speedup: float) -> None:
    with pytest.raises(ConfigError, match=r"from 1\.00 to 3\.00"):
        table(point(0.0, 1.0, 1.0), point(0.8, 3.0, 0.5)).at_speedup(speedup)


def test_a_gap_between_two_curves_is_named() -> None:
    """Guidance that is taken again saves a third at once."""
    guided = [
        Point.model_validate(point(tau, speedup, 0.9).model_dump() | {"setting": Setting(tau, 0, 0, None, 1)})
        for tau, speedup in ((0.0, 1.32), (0.6, 1.396))
    ]
    calibration = table(point(0.0, 1.0, 1.0), point(0.6, 1.07, 0.9), *guided)
    assert calibration.ranges() == [(1.0, 1.07), (1.32, 1.396)]
    with pytest.raises(ConfigError, match=r"reaches from 1\.00 to 1\.07 and from 1\.32 to 1\.40"):
        calibration.at_speedup(1.2)
    assert calibration.at_speedup(1.32).max_guidance_reuse == 1
    assert calibration.at_speedup(1.40).tau == 0.6, "an end as it is printed may be asked for"


def test_an_adapter_folder_brings_its_calibration(tiny_flux: Tiny, tmp_path: Path) -> None:
    elastic = elasticize(tiny_flux.transformer, ElasticConfig.of(delta=0.3))
    with pytest.raises(ConfigError, match="elastic-dit calibrate"):
        elastic.speedup = 2.0
    folder = elastic.save(tmp_path / "adapter")
    assert load(tiny_flux.transformer, folder).calibration is None
    written = table(point(0.2, 1.0, 1.0), point(0.6, 3.0, 0.5, PLAIN))
    written.write(folder)
    elastic = load(tiny_flux.transformer, folder)
    assert elastic.calibration == written
    assert elastic.speedup is None
    elastic.speedup = 2.0
    assert (elastic.speedup, elastic.tau, elastic.delta, elastic.max_reuse) == (2.0, pytest.approx(0.4), 0.0, 0)
    elastic.tau = 0.5
    assert elastic.speedup is None
    (folder / CALIBRATION_NAME).write_text('{"points": []}')
    with pytest.raises(CheckpointError, match=CALIBRATION_NAME):
        load(tiny_flux.transformer, folder)


def test_a_calibration_goes_with_its_model(tiny_flux: Tiny, tmp_path: Path) -> None:
    folder = elasticize(tiny_flux.transformer).save(tmp_path / "adapter")
    written = table(point(0.2, 1.0, 1.0), point(0.6, 3.0, 0.5))
    written.write(folder)
    elastic = load(tiny_flux.transformer, folder)
    assert load(tiny_flux.transformer, elastic.save(tmp_path / "copy")).calibration == written
    assert load(tiny_flux.transformer, elastic.save(folder)).calibration == written
    elastic = load(tiny_flux.transformer, folder)
    elastic.train_mode()
    assert load(tiny_flux.transformer, elastic.save(folder)).calibration is None
