"""What several commands need: where the model is, the device, the dtype, and which extra is missing."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elastic_dit.errors import ConfigError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")

Model = Annotated[str | None, typer.Option(help="Pipeline folder or Hub id.", show_default="the shipped model")]
Adapter = Annotated[str | None, typer.Option(help="Adapter folder or Hub id.", show_default="the shipped one")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda...", show_default="cuda if there is one")]
Dtype = Annotated[str | None, typer.Option(help=f"{', '.join(DTYPES)}.", show_default="float32 on cpu, else bfloat16")]


def _above_zero(value: float | None) -> float | None:
    if value is not None and value <= 0:
        raise typer.BadParameter(f"{value:g} came; expected a number above 0")
    return value


Shift = Annotated[
    float | None,
    typer.Option(
        callback=_above_zero,
        help="Shift of the noise levels of the steps: above 1 more of them are at high noise.",
        show_default="the pipeline's",
    ),
]


@contextmanager
def needs_extra(command: str, extra: str) -> Iterator[None]:
    """Around imports: a missing optional package becomes one line that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "elastic_dit":
            raise
        raise ConfigError(
            f"`elastic-dit {command}` needs {error.name}, which is not installed: it comes with elastic-dit[{extra}], "
            f"in a clone pip install -e '.[{extra}]'"
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


def load_quietly(model: str, dtype: "torch.dtype", device: "torch.device", shift: float | None = None) -> Any:
    """A pipeline on a device, its noise levels shifted, without the loaders' own progress bars and warnings."""
    from elastic_dit.models.loading import load_pipeline

    quiet_libraries()
    pipe = load_pipeline(model, dtype, str(device))
    if shift is not None:
        from elastic_dit.evaluation.sampling import shifted

        pipe.scheduler = shifted(pipe.scheduler, shift)
    return pipe


def quiet_libraries() -> None:
    """Keep what Hugging Face's libraries have to say off the terminal: their errors reach us as exceptions."""
    import diffusers
    import huggingface_hub
    import transformers

    warnings.filterwarnings("ignore", module="diffusers|transformers|huggingface_hub|torchmetrics")
    for library in (diffusers, transformers, huggingface_hub):
        library.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
