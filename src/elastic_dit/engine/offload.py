"""Hooks of ours on a transformer whose weights accelerate moves to the device and away."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from torch import nn

from elastic_dit.errors import BackboneError


@contextmanager
def below_offload(transformer: Any) -> Iterator[None]:
    """While entered, accelerate's hook is off the transformer, so that it wraps whatever forward is there at the end.

    After each call of a pipeline with `enable_model_cpu_offload` accelerate puts back the forward that it found when it
    came: with one from before our hooks the model would be dense from then on, with ours it would never be rid of them.
    """
    hook = getattr(transformer, "_hf_hook", None)
    if hook is None:
        yield
        return
    remove_hook_from_module(transformer)
    try:
        yield
    finally:
        add_hook_to_module(transformer, hook)


def refuse_absent_weights(transformer: nn.Module, what: str) -> None:
    """Refuse weights that are elsewhere until their layer runs, as with `enable_sequential_cpu_offload`.

    Args:
        transformer: whose weights are needed.
        what: what to do first, for the message.

    Raises:
        BackboneError: there are such.
    """
    if any(parameter.is_meta for parameter in transformer.parameters()):
        raise BackboneError(f"the weights of this {type(transformer).__name__} are offloaded layer by layer: {what}")
