"""The dense model, compiled: what everybody can have without changing what is computed."""

from typing import Any

from elastic_dit.baselines.base import Applied, Baseline, Task, baselines
from elastic_dit.errors import BackboneError


def _apply(transformer: Any, setting: float, task: Task) -> Applied:
    try:
        transformer.compile_repeated_blocks(fullgraph=True)
    except (AttributeError, ValueError) as error:
        raise BackboneError(
            f"a {type(transformer).__name__} has no blocks that diffusers can compile: {error}"
        ) from error
    return Applied(restart=lambda: None)


baselines.add(
    "compiled",
    Baseline(
        name="compiled",
        about="Runs the dense model with its blocks compiled, one graph per block class.",
        source="diffusers' compile_repeated_blocks(fullgraph=True)",
        setting="",
        settings=(0.0,),
        apply=_apply,
    ),
)
