"""What several commands need: where the model is, the device, the dtype, and which extra is missing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from elastic_dit.errors import ConfigError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


@contextmanager
def needs_extra(command: str, extra: str) -> Iterator[None]:
    """Around imports: a missing optional package becomes one line that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "elastic_dit":
            raise
        raise ConfigError(
            f"`elastic-dit {command}` needs {error.name}, which is not installed: pip install 'elastic-dit[{extra}]'"
        ) from error


def model_and_adapter(model: str | None, adapter: str | None) -> tuple[str, str]:
    """Folders or Hub ids; the model that ships with us where none is given.

    Raises:
        ConfigError: a model came without its adapter.
    """
    from elastic_dit.models import shipped_adapter, shipped_model

    if model is not None and adapter is None:
        raise ConfigError(f"--model {model} came without --adapter; expected the adapter that makes it elastic")
    return model or str(shipped_model()), adapter or str(shipped_adapter())


def pick_device(name: str | None) -> "torch.device":
    """The device asked for, or the GPU if there is one.

    Raises:
        ConfigError: torch has no such device here.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used here; expected cpu, or cuda on a machine with one"
        ) from error
    return device


def pick_dtype(name: str | None, device: "torch.device") -> "torch.dtype":
    """The dtype asked for; by default bfloat16 on an accelerator and float32 on the CPU.

    Raises:
        ConfigError: no such dtype.
    """
    import torch

    if name is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {name!r}; known: {', '.join(DTYPES)}")
    return getattr(torch, name)


def load_quietly(model: str, dtype: "torch.dtype", device: "torch.device") -> Any:
    """A pipeline on a device, without the loaders' own progress bars."""
    import diffusers
    import transformers

    from elastic_dit.models.loading import load_pipeline

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    return load_pipeline(model, dtype, str(device))
