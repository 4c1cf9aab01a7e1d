"""A step's velocity, forecast from those of earlier steps in place of running the transformer. Not in the paper.

Algorithm 1 adds a block's old residual to a new input. What is old then is meant for an input with more noise, and what
was to be taken away stays in the image. Of all that a transformer computes, its output changes least from step to
step, since flow matching makes paths straight: so it is the output that goes on, along the noise level, as TaylorSeer
(arXiv 2503.06923) does with every n-th step. Here only below a noise level: where images take shape, all is computed.
"""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class VelocityBank:
    """The last computed velocities of one guidance branch in one run."""

    computed: list[tuple[float, Tensor]] = field(default_factory=list[tuple[float, Tensor]])
    """Noise levels and outputs (B, ...) there, the newest first."""
    forecasts: int = 0
    """How many steps in a row were forecast."""

    def can_forecast(self, most: int, order: int) -> bool:
        """Fewer than `most` in a row were, and there are the order + 1 velocities that it takes."""
        return self.forecasts < most and len(self.computed) > order

    def forecast(self, sigma: float, order: int) -> Tensor:
        """The polynomial of this order through the last order + 1 velocities, at noise level sigma; counts one use."""
        self.forecasts += 1
        points = self.computed[: order + 1]
        velocity = 0 * points[0][1]
        for own, value in points:
            weight = 1.0
            for other, _ in points:
                if other != own:
                    weight *= (sigma - other) / (own - other)
            velocity = velocity + weight * value
        return velocity

    def store(self, sigma: float, velocity: Tensor, order: int) -> None:
        """Keep a computed velocity, and as many before it, at other noise levels, as the order takes."""
        before = [point for point in self.computed if point[0] != sigma]
        self.computed = [(sigma, velocity.detach()), *before[:order]]
        self.forecasts = 0
