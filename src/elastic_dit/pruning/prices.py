"""The price at which a mean share is the one that is asked for."""

from collections.abc import Callable

LIMIT = 1e6
"""Beyond which no price is tried."""
HALVINGS = 40
"""Of the range that it lies in."""


def price_of(wanted: float, mean: Callable[[float], float]) -> float:
    """By bisection; where no price gives that share, the nearest that was tried.

    Args:
        wanted: mean share.
        mean: the share at a price, which falls as the price rises.
    """
    low, high = -1.0, 1.0
    while mean(low) < wanted - 1e-6 and low > -LIMIT:
        low *= 2
    while mean(high) > wanted + 1e-6 and high < LIMIT:
        high *= 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) > wanted else (low, middle)
    return high
