"""`elastic-dit forecast`: which steps take a velocity forecast from earlier ones, by what it does to the images."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elastic_dit.cli.output import ProgressBar
from elastic_dit.cli.setup import Device, Dtype, Model, Shift, load_quietly, needs_extra, pick_device, pick_dtype

if TYPE_CHECKING:
    from elastic_dit.pruning.forecast import Forecasts


def forecast(
    data: Annotated[Path, typer.Argument(help="Folder of training pairs, as `data prepare` writes it.")],
    output: Annotated[Path, typer.Option(help="The adapter folder to write.", show_default=False)],
    model: Model = None,
    adapter: Annotated[
        str | None, typer.Option(help="Adapter folder or Hub id to start from.", show_default="the dense model")
    ] = None,
    budget: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the FLOPs that the dense model spends in as many steps.")
    ] = 0.5,
    dial: Annotated[
        float | None,
        typer.Option(help="Where the dial of an adapter for all budgets is to stand.", show_default="where it stands"),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Denoising steps it is meant for.")] = 28,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1 runs one branch.")] = 3.0,
    shift: Shift = None,
    max_forecast: Annotated[
        list[int] | None,
        typer.Option(
            min=0, help="Forecasts in a row to try; may be given again. 0: none.", show_default="1, 2, 3 and 4"
        ),
    ] = None,
    max_guidance_reuse: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            help="Steps in a row to try that take an earlier step's guidance; may be given again. 0: none.",
            show_default="1, and all that follow",
        ),
    ] = None,
    guidance_fade: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="What is left of that guidance from one step to the next: 1 holds it, 0 leaves it out.",
            show_default="measured",
        ),
    ] = None,
    unguided: Annotated[
        int, typer.Option(min=0, help="First steps without guidance: there the branch with the prompt runs alone.")
    ] = 0,
    images: Annotated[int, typer.Option(min=1, help="Training captions to denoise, each time.")] = 16,
    resolution: Annotated[int, typer.Option(min=1, help="Side of the images in pixels.")] = 64,
    cache: Annotated[Path, typer.Option(help="Folder for the encoded pairs.")] = Path("cache"),
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's choice")] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Let a model leave whole forwards out, so that a budget is met. Nothing is trained.

    A step's velocity may be forecast from earlier ones; or the step runs the branch with the prompt alone, and takes
    what is left of an earlier step's guidance. Both begin below some noise level. How many steps in a row, from one
    velocity or along the line through two, and from which noise level on, is chosen by denoising a few training
    captions: the images that change least win. Works on the dense model, on `elastic-dit prune`'s routes and on any
    trained adapter: what they decide block by block holds in the steps that are computed. Choose it for the steps you
    will use. With --dial an adapter for all budgets runs fewer steps at more of its FLOPs, or more steps at less.
    """
    with needs_extra("forecast", "train"):
        import torch

        from elastic_dit.pruning.base import unpruned
        from elastic_dit.pruning.forecast import with_forecasts
        from elastic_dit.pruning.noise_levels import denoising_of
        from elastic_dit.training.config import DataConfig
        from elastic_dit.training.data.cache import encode
        from elastic_dit.training.families.base import family_of
        from elastic_dit.verbs import load
    from elastic_dit.models import shipped_model

    where = pick_device(device)
    if threads:
        torch.set_num_threads(threads)
    with ProgressBar() as bar:
        bar.show("loading", 0, 0)
        family = family_of(load_quietly(model or str(shipped_model()), pick_dtype(dtype, where), where, shift))
        source = DataConfig(path=str(data), resolution=resolution, cache=cache, limit=images)
        pairs = encode(family, source, str(data), quiet=True)
        elastic = load(family.pipeline, adapter) if adapter else unpruned(family.pipeline)
        if dial is not None:
            elastic.budget = elastic.config.default_budget = dial
        denoising = denoising_of(family, pairs, images, steps, guidance, seed)
        tried = with_forecasts(
            elastic,
            denoising,
            budget,
            max_forecast=[most for most in max_forecast or (1, 2, 3, 4) if most],
            max_guidance_reuse=max_guidance_reuse and [most for most in max_guidance_reuse if most],
            guidance_fade=guidance_fade,
            unguided=unguided,
            progress=bar.show,
        )
        elastic.save(output, elastic.weights.dtype)
    forwards = steps * (1 if denoising.empty is None else 2)
    for way in tried:
        counted = f"{way.computed} of {forwards} forwards computed, {way.flops_share:.1%} of the FLOPs"
        typer.echo(f"{counted}: {_in_words(way, steps)}: {_decibel(way.moved)}")
    typer.echo(f"{output}: the first of these (PSNR of the latents beside the same model with all computed)")


def _in_words(way: "Forecasts", steps: int) -> str:
    words: list[str] = []
    if way.max_forecast:
        words.append(f"below noise level {way.below:.2f} up to {way.max_forecast} in a row forecast, order {way.order}")
    if way.unguided:
        which = "step" if way.unguided == 1 else f"{way.unguided} steps"
        words.append(f"no guidance in the first {which}")
    if reused := way.max_guidance_reuse:
        often = f"up to {reused} in a row reuse guidance" if reused < steps else "guidance reused"
        fade = f", of which {way.guidance_fade:.0%} is left each time" if way.guidance_fade < 1 else ""
        words.append(f"below noise level {way.guidance_below:.2f} {often}{fade}")
    return "; ".join(words)


def _decibel(moved: float) -> str:
    return f"{-10 * math.log10(moved / 4):.1f} dB" if moved else "no change"
