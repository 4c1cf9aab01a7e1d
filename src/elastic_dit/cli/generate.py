"""`elastic-dit generate`: images from a prompt."""

from pathlib import Path
from typing import Annotated, Any

import typer

from elastic_dit.cli.output import encode_image, image_format, write_bytes
from elastic_dit.cli.setup import (
    Adapter,
    Device,
    Dtype,
    Model,
    Shift,
    load_quietly,
    model_and_adapter,
    pick_device,
    pick_dtype,
)
from elastic_dit.errors import ConfigError

PIPELINES, ADAPTERS = "the pipeline's", "the adapter's"


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.", show_default=False)],
    model: Model = None,
    adapter: Adapter = None,
    dense: Annotated[bool, typer.Option("--dense", help="Without any adapter: the model as it was.")] = False,
    output: Annotated[Path, typer.Option(help="Image file; several are numbered.")] = Path("image.png"),
    number: Annotated[int, typer.Option(min=1, help="How many images, each with the next seed.")] = 1,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images drawn at once; fewer take less memory. The summary is of the last batch.",
            show_default="all of --number",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.", show_default=PIPELINES)] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.", show_default=PIPELINES)] = None,
    shift: Shift = None,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels.", show_default=PIPELINES)] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Pixels.", show_default=PIPELINES)] = None,
    speedup: Annotated[
        float | None,
        typer.Option(
            help="Over the dense model, as 1.8: picks the settings below from what `elastic-dit calibrate` measured."
        ),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Share of the dense FLOPs, for routers trained on a range of budgets.")
    ] = None,
    tau: Annotated[
        float | None, typer.Option(help="Skip blocks below this keep probability, 0 to 1.", show_default=ADAPTERS)
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Reuse residuals up to this far above tau, 0 to 1.", show_default=ADAPTERS)
    ] = None,
    max_reuse: Annotated[
        int | None, typer.Option(help="How often a residual is reused; 0: never.", show_default=ADAPTERS)
    ] = None,
    step_share: Annotated[
        float | None,
        typer.Option(
            help="Share of the steps to run, on average over prompts; for an adapter of `select-steps`, with as many "
            "--steps as it was fitted for.",
            show_default=ADAPTERS,
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Generate images with the shipped model, or with a text-to-image pipeline of a known backbone and its adapter."""
    from elastic_dit.config import ElasticConfig
    from elastic_dit.evaluation.sampling import SampleSettings, sample_images
    from elastic_dit.verbs import load

    format_name = image_format(output)
    settings = {"tau": tau, "delta": delta, "max_reuse": max_reuse}
    checked = {name: value for name, value in settings.items() if value is not None}
    ElasticConfig.of(**checked)  # a bad value is told before minutes of loading, a bad folder too
    turned = {"speedup": speedup, "budget": budget, "step_share": step_share}
    changes = {name: value for name, value in turned.items() if value is not None} | checked
    if speedup is not None and len(changes) > 1:
        raise ConfigError(f"--speedup sets what --{list(changes)[1].replace('_', '-')} sets; expected one of them")
    output.parent.mkdir(parents=True, exist_ok=True)
    base, fitting = _dense_model(model, adapter, changes) if dense else model_and_adapter(model, adapter)
    where = pick_device(device)
    pipe = load_quietly(base, pick_dtype(dtype, where), where)
    pipe.set_progress_bar_config(disable=None)  # tqdm's word for: on a terminal only
    elastic = load(pipe, fitting) if fitting else None
    if elastic is not None and checked and not len(elastic.routers):
        raise ConfigError(f"--{next(iter(checked)).replace('_', '-')} turns routers; {fitting} has a fixed route, none")
    for name, value in changes.items():
        setattr(elastic, name, value)
    sampling = SampleSettings(steps, guidance, height, width, shift)
    for start in range(0, number, batch or number):
        seeds = [seed + index for index in range(start, min(start + (batch or number), number))]
        images = sample_images(pipe, [prompt] * len(seeds), seeds, sampling)
        for index, image in enumerate(images, start=start + 1):
            file = output if number == 1 else output.with_stem(f"{output.stem}-{index}")
            typer.echo(write_bytes(file, encode_image(image, format_name)))
    if elastic is not None:  # of the last batch
        typer.echo(elastic.summary())


def _dense_model(model: str | None, adapter: str | None, changes: dict[str, Any]) -> tuple[str, None]:
    from elastic_dit.models import shipped_model

    if adapter is not None or changes:
        given = ["adapter"] * (adapter is not None) + [name.replace("_", "-") for name in changes]
        raise ConfigError(f"--dense runs without an adapter, so it takes no {', '.join(f'--{n}' for n in given)}")
    return model or str(shipped_model()), None
