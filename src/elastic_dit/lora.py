"""An adapter's LoRA on a transformer, beside a user's own: those keep what they are, also when ours goes again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from elastic_dit.errors import CheckpointError

LORA_NAME = "elastic"


def add_lora(transformer: Any, options: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Put a LoRA on; it is active together with those that are.

    Args:
        transformer: where it goes.
        options: of `peft.LoraConfig`.
        tensors: by peft's names.

    Raises:
        CheckpointError: there is one of this name, or these do not fit one another or the transformer, which is left
            as it was.
    """
    from peft import LoraConfig

    if LORA_NAME in getattr(transformer, "peft_config", {}):
        raise CheckpointError(f"the transformer has a LoRA {LORA_NAME!r} already; the adapter's needs that name")
    active = _active(transformer)
    try:
        with _learning_kept(transformer):
            transformer.add_adapter(LoraConfig(**options), adapter_name=LORA_NAME)
            transformer.set_adapter([*active, LORA_NAME])
            transformer.enable_adapters()
        _fill(transformer, tensors)
    except BaseException as error:
        _remove(transformer, active)
        if isinstance(error, Exception):  # peft's have no common base
            raise CheckpointError(f"the adapter's LoRA does not fit: {error}") from error
        raise


def remove_lora(transformer: Any) -> None:
    """Take ours off; of the others, those stay active that are."""
    _remove(transformer, [name for name in _active(transformer) if name != LORA_NAME])


def lora_to_save(transformer: Any) -> str | None:
    """The LoRA that goes into an adapter: ours, or else the active one; None where there is none.

    Raises:
        CheckpointError: there are others, and not one of them is active alone.
    """
    if not getattr(transformer, "peft_config", None):
        return None
    if LORA_NAME in transformer.peft_config:
        return LORA_NAME
    active = transformer.active_adapters()
    if len(active) != 1:
        raise CheckpointError(f"expected one active LoRA to save, the transformer has {active}")
    return active[0]


def _fill(transformer: Any, tensors: dict[str, Tensor]) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    expected = get_peft_model_state_dict(transformer, adapter_name=LORA_NAME)
    if wrong := sorted(dict(_shapes(expected) ^ _shapes(tensors))):
        raise CheckpointError(f"missing, left over or of another shape: {', '.join(wrong[:3])}")
    set_peft_model_state_dict(transformer, tensors, adapter_name=LORA_NAME)


def _remove(transformer: Any, active: list[str]) -> None:
    """Take ours off, whole or half put on, and let others be active."""
    with _learning_kept(transformer):
        if getattr(transformer, "peft_config", None):  # first, or else peft activates another in its place
            transformer.set_adapter(active)
        transformer.delete_adapters(LORA_NAME)
        if not getattr(transformer, "peft_config", None):
            transformer.unload_lora()
        _unwrap(transformer)


def _active(transformer: nn.Module) -> list[str]:
    """Those that count in a forward."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = (layer for layer in transformer.modules() if isinstance(layer, BaseTunerLayer))
    return next(([] if layer.disable_adapters else list(layer.active_adapters) for layer in layers), [])


def _unwrap(transformer: nn.Module) -> None:
    """Layers that no LoRA is on any more become plain ones."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(transformer.named_modules()):
        if isinstance(layer, LoraLayer) and not layer.r:
            transformer.set_submodule(name, layer.get_base_layer())


@contextmanager
def _learning_kept(transformer: nn.Module) -> Iterator[None]:
    """What learns does so afterwards, and what does not does not: activating a LoRA would change that."""
    learning = [(parameter, parameter.requires_grad) for parameter in transformer.parameters()]
    try:
        yield
    finally:
        for parameter, learns in learning:
            parameter.requires_grad_(learns)


def _shapes(tensors: dict[str, Tensor]) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, tuple(value.shape)) for name, value in tensors.items()}
