"""How many steps a sample takes, by its prompt; beyond the paper.

The small model draws a thing alone as well in three steps as in six, two things side by side not. As in AdaDiff (arXiv
2311.14768) the text says which it will be: from its tokens it is predicted how likely a good image is at each interval
between the steps that run, and the interval is taken where that, less the price of its steps, is highest. The price of
a step is the one at which the mean share of steps, over prompts like those of the fit, is the one that was asked for.
B batch, T tokens, D model width, F = 2D features, S intervals.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from elastic_dit.core.allocation import hats, summary

PRICES = 17
"""For how many shares of steps there is a price: evenly spaced, and what lies between is interpolated."""


class StepSelector(nn.Module):
    """Logistic regression from a prompt's features to the quality at each interval.

    Where nearly all images are good, or none, more steps change little: that a linear map would not know. It is fitted
    to scores (`elastic_dit.pruning.step_selection`), not trained, and so has buffers alone.
    """

    def __init__(self, dim: int, intervals: Sequence[int]) -> None:
        super().__init__()
        self.span = 1 / intervals[-1], 1 / intervals[0]
        self.intervals: Tensor
        self.center: Tensor
        self.scale: Tensor
        self.weight: Tensor
        self.prices: Tensor
        self.register_buffer("intervals", torch.tensor(intervals), persistent=False)
        self.register_buffer("center", torch.zeros(2 * dim))
        self.register_buffer("scale", torch.ones(2 * dim))
        self.register_buffer("weight", torch.zeros(2 * dim + 1, len(intervals)))
        self.register_buffer("prices", torch.zeros(PRICES))

    @torch.no_grad()
    def forward(self, text: Tensor, share: float) -> Tensor:
        """The interval of each sample, (B,), from what the first block is given of its prompt, (B, T, D).

        Args:
            text: the text tokens.
            share: of the steps, that the mean over many prompts is to run; within `span`.
        """
        price = hats(self.place(share), PRICES) @ self.prices
        return self.intervals[self.best(self.quality(summary(text)), float(price))]

    def quality(self, features: Tensor) -> Tensor:
        """What is predicted at each interval, (B, F) to (B, S) in 0..1."""
        x = nn.functional.pad((features - self.center) / self.scale, (0, 1), value=1.0)
        return (x @ self.weight).sigmoid()

    def best(self, quality: Tensor, price: float) -> Tensor:
        """Which interval has the highest quality (B, S) less the price of its steps, (B,)."""
        return (quality - price / self.intervals).argmax(dim=-1)

    def place(self, share: float) -> Tensor:
        """Where a share of steps lies among those that have a price, (1,)."""
        low, high = self.span
        return torch.tensor([(share - low) / (high - low) * (PRICES - 1)], device=self.prices.device)
