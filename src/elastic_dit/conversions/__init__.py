"""Other published ways to make a transformer dynamic: each changes the transformer itself and is then trained."""

from elastic_dit.conversions.base import (
    Conversion,
    Converted,
    conversions,
    is_converted,
    load_converted,
    save_converted,
)

__all__ = ["Conversion", "Converted", "conversions", "is_converted", "load_converted", "save_converted"]
