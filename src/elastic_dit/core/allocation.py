"""How much of a budget one forward gets, by what its first blocks made of it; beyond the paper.

Routers that were made for a range of budgets say which blocks a budget is best spent on. Here it is said which budget:
from the tokens that a block is given, the harm of every budget to this forward's velocity is predicted, and what is
cheapest in harm and price together is taken. The price of FLOPs is the one at which the mean over forwards is the
budget that was asked for, so a forward that needs little pays for one that needs more. B batch, T tokens, D model
width, F features, K noise levels, G budgets.
"""

import torch
from torch import Tensor, nn

LEVELS, BUDGETS, PRICES = 4, 8, 15
"""K; G; and for how many budgets there is a price: each evenly spaced, and what lies between is interpolated."""


class Allocator(nn.Module):
    """A linear map from features to the harm of each budget, whose weights are linear between noise levels.

    It is fitted in closed form (`elastic_dit.pruning.allocation`), not trained, and so has buffers alone.
    """

    def __init__(self, dim: int, budget_range: tuple[float, float]) -> None:
        super().__init__()
        self.budgets: Tensor
        self.center: Tensor
        self.scale: Tensor
        self.weight: Tensor
        self.prices: Tensor
        self.register_buffer("budgets", torch.linspace(*budget_range, BUDGETS), persistent=False)
        self.register_buffer("center", torch.zeros(2 * dim))
        self.register_buffer("scale", torch.ones(2 * dim))
        self.register_buffer("weight", torch.zeros(LEVELS * (2 * dim + 1), BUDGETS))
        self.register_buffer("prices", torch.zeros(PRICES))

    @torch.no_grad()
    def forward(self, hidden_states: Tensor, sigma: Tensor, budget: Tensor) -> Tensor:
        """The budget of each row, (B,); a budget of 1 stays 1.

        Args:
            hidden_states: what the block is given, (B, T, D).
            sigma: noise level of each row, 0..1, (B,).
            budget: that the mean over many forwards is to have, (B,).
        """
        harm = self.design(summary(hidden_states), sigma) @ self.weight  # (B, G)
        cheapest = self.cheapest(harm, interpolate(self.prices, self.place(budget)))
        return torch.where(budget < 1, self.budgets[cheapest], budget)

    def design(self, features: Tensor, sigma: Tensor) -> Tensor:
        """What the harm is linear in: features (B, F) and 1, once for each noise level by nearness, (B, K (F + 1))."""
        x = nn.functional.pad((features - self.center) / self.scale, (0, 1), value=1.0)  # (B, F + 1)
        near = hats(sigma.float() * (LEVELS - 1), LEVELS)  # (B, K)
        return (near.unsqueeze(-1) * x.unsqueeze(1)).flatten(1)

    def cheapest(self, harm: Tensor, price: Tensor) -> Tensor:
        """Which budget has the least harm (B, G) and price (B,) together, (B,)."""
        return (harm + price.unsqueeze(-1) * self.budgets).argmin(dim=-1)

    def place(self, budget: Tensor) -> Tensor:
        """Where budgets (B,) lie among those that have a price."""
        low, high = self.budgets[0], self.budgets[-1]
        return (budget.to(low) - low) / (high - low) * (PRICES - 1)


def summary(hidden_states: Tensor) -> Tensor:
    """Mean and standard deviation over the tokens, (B, T, D) to (B, 2D), float32."""
    x = hidden_states.float()
    return torch.cat([x.mean(dim=1), x.std(dim=1)], dim=-1)


def hats(place: Tensor, count: int) -> Tensor:
    """Weights of linear interpolation between `count` knots at 0, 1, 2..., (B,) to (B, count)."""
    knots = torch.arange(count, device=place.device)
    return (1 - (place.clamp(0, count - 1).unsqueeze(-1) - knots).abs()).clamp(min=0)


def interpolate(values: Tensor, place: Tensor) -> Tensor:
    """Values (count,) at knots 0, 1, 2..., at places (B,) between them."""
    return hats(place, len(values)) @ values
