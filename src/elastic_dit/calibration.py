"""`calibration.json`: what settings of the dial gave on one machine, so that a speed-up can be asked for by name."""

from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from elastic_dit.config import explain
from elastic_dit.errors import CheckpointError, ConfigError
from elastic_dit.records import Environment

CALIBRATION_NAME = "calibration.json"


class Setting(NamedTuple):
    """What the dial turns."""

    tau: float
    """Threshold."""
    delta: float
    """Width of the band above it in which residuals are reused."""
    max_reuse: int
    """K."""
    budget: float | None = None
    """Share of FLOPs, where the routers were trained on a range of budgets."""
    max_guidance_reuse: int = 0
    """How many steps in a row take the guidance of an earlier one."""

    @property
    def dial(self) -> float:
        """What makes it faster as it rises: what the budget lacks to the whole, or else tau."""
        return self.tau if self.budget is None else 1 - self.budget

    def turned(self, dial: float) -> "Setting":
        """The same at another place of the dial."""
        return self._replace(tau=dial) if self.budget is None else self._replace(budget=1 - dial)

    @property
    def curve(self) -> "Setting":
        """What stays as it is while the dial turns."""
        return self.turned(0.0)


class Point(BaseModel):
    """A setting, and what was measured with it."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    setting: Setting
    speedup: float = Field(gt=0)
    """Of a denoising step over the dense model's, in the transformer."""
    flops_share: float = Field(gt=0)
    """Of the dense FLOPs, routers included."""
    psnr: float | None
    """Mean PSNR in dB of the images against the dense model's, same prompts and seeds; None where all are equal."""
    ssim: float
    """Mean structural similarity to the dense model's images."""
    samples: dict[str, list[float]]
    """Seconds of a step, dense and elastic in turn."""


class Check(BaseModel):
    """A speed-up that was asked for, and what came of it."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    asked: float = Field(gt=0)
    point: Point


class Calibration(BaseModel):
    """What `elastic-dit calibrate` measures. It holds for its machine, steps, batch and image size."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    command: str
    """What makes it again."""
    environment: Environment
    config: dict[str, Any]
    """Prompts, steps, guidance, size."""
    points: list[Point] = Field(min_length=2)
    checks: list[Check] = []
    """Measured after the points, at the settings that they give."""

    def curves(self) -> list[list[Point]]:
        """For each way to reuse the points from slow to fast, without those that a milder setting outruns."""
        groups: defaultdict[Setting, list[Point]] = defaultdict(list)
        for point in sorted(self.points, key=lambda point: point.setting.dial):
            curve = groups[point.setting.curve]
            if not curve or point.speedup > curve[-1].speedup:
                curve.append(point)
        return list(groups.values())

    def ranges(self) -> list[tuple[float, float]]:
        """The speed-ups that can be asked for, each from one to another: between two curves there may be a gap."""
        found: list[tuple[float, float]] = []
        for low, high in sorted((curve[0].speedup, curve[-1].speedup) for curve in self.curves()):
            if found and low <= found[-1][1]:
                low, high = found[-1][0], max(found.pop()[1], high)
            found.append((low, high))
        return found

    def reachable(self, speedup: float) -> float | None:
        """A speed-up that has a setting: this one, or the end of a range that reads the same; None: there is none."""
        ranges = self.ranges()
        if any(low <= speedup <= high for low, high in ranges):
            return speedup
        return {_printed(end): end for ends in ranges for end in ends}.get(_printed(speedup))

    def at_speedup(self, speedup: float) -> Setting:
        """The setting for a speed-up: between two points; of several curves, the one that looks most like dense.

        Args:
            speedup: over dense, within one of the `ranges`.

        Raises:
            ConfigError: outside of them.
        """
        if (wanted := self.reachable(speedup)) is None:
            reached = " and ".join(f"from {_printed(low)} to {_printed(high)}" for low, high in self.ranges())
            raise ConfigError(f"speedup {speedup:g} was asked for; the calibration reaches {reached}")
        found = [
            _between(below, above, wanted)
            for curve in self.curves()
            for below, above in pairwise([curve[0], *curve])
            if below.speedup <= wanted <= above.speedup
        ]
        return max(found)[1]

    def write(self, folder: Path) -> Path:
        """Write into an adapter folder, whole or not at all."""
        file = folder / CALIBRATION_NAME
        temporary = file.with_name(f".{file.name}.partial")
        temporary.write_text(self.model_dump_json(indent=2) + "\n")
        return temporary.replace(file)

    @classmethod
    def read(cls, folder: Path) -> "Calibration | None":
        """Read what `write` wrote; None where the folder has none.

        Raises:
            CheckpointError: the file is damaged.
        """
        file = folder / CALIBRATION_NAME
        if not file.exists():
            return None
        try:
            return cls.model_validate_json(file.read_text())
        except ValidationError as error:
            raise CheckpointError(f"{file} is no calibration: {explain(error, cls)}") from error


def _printed(speedup: float) -> str:
    """As errors and tables print it."""
    return f"{speedup:.2f}"


def _between(below: Point, above: Point, speedup: float) -> tuple[float, Setting]:
    """SSIM and setting at a speed-up between two points of a curve, linear in it."""
    rise = above.speedup - below.speedup
    part = (speedup - below.speedup) / rise if rise else 0.0
    dial = below.setting.dial + part * (above.setting.dial - below.setting.dial)
    return below.ssim + part * (above.ssim - below.ssim), below.setting.turned(dial)
