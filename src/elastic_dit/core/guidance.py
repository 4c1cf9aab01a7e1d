"""Guidance taken again: of a step's branches the first alone runs, the others keep their distance. Not in the paper.

Classifier-free guidance runs the transformer twice a step, and moves along the difference of the two velocities. Some
leave that out altogether at low noise, or at high (guidance interval, arXiv 2404.07724; Adaptive Guidance, arXiv
2312.12487), and FasterCache (arXiv 2410.19355) corrects an old one by frequencies. Here an old one is taken below a
noise level, and may fade each time; above another there is none. The branch with the prompt is always computed.
"""

from dataclasses import dataclass

from torch import Tensor


def fade_of(before: Tensor, after: Tensor) -> float:
    """What is left of a step's guidance at the next: the least squares of one on the other.

    Args:
        before: the first branch's velocity less the second's, (B, ...).
        after: the same one step later.

    Returns:
        From 0, where they have nothing in common, to 1; 1 where the first is 0.
    """
    square = float(before.square().sum())
    return min(max(float((before * after).sum()) / square, 0.0), 1.0) if square else 1.0


@dataclass
class GuidanceBank:
    """How far one guidance branch was from the first when it last ran, in one run."""

    difference: Tensor | None = None
    """The first branch's velocity less this one's (B, ...), faded since if it was taken again."""
    reuses: int = 0
    """How many steps in a row took it again."""

    def can_reuse(self, most: int) -> bool:
        """Fewer than `most` in a row did, and there is one."""
        return self.reuses < most and self.difference is not None

    def reuse(self, first: Tensor, fade: float | Tensor = 1.0) -> Tensor:
        """This branch's velocity (B, ...) where the first has `first` (B, ...); counts one use.

        Args:
            first: the first branch's velocity at this step.
            fade: what is left of the difference since the step before, 0..1; of each sample, (B, 1...).
        """
        assert self.difference is not None
        self.reuses += 1
        self.difference = self.difference * fade
        return first - self.difference

    def store(self, first: Tensor, velocity: Tensor) -> None:
        """Both were computed."""
        self.difference = (first - velocity).detach()
        self.reuses = 0
