"""`elastic-dit reuse`: which blocks reuse their residuals, and when, by what it does to the images; no training."""

import math
from pathlib import Path
from typing import Annotated

import typer

from elastic_dit.cli.output import ProgressBar
from elastic_dit.cli.setup import Device, Dtype, Model, load_quietly, needs_extra, pick_device, pick_dtype


def reuse(
    data: Annotated[Path, typer.Argument(help="Folder of training pairs, as `data prepare` writes it.")],
    output: Annotated[Path, typer.Option(help="The adapter folder to write.", show_default=False)],
    model: Model = None,
    adapter: Annotated[
        str | None, typer.Option(help="Adapter folder or Hub id to start from.", show_default="the dense model")
    ] = None,
    budget: Annotated[float, typer.Option(min=0, max=1, help="Share of the dense blocks' FLOPs to spend.")] = 0.5,
    steps: Annotated[int, typer.Option(min=2, help="Denoising steps it is meant for.")] = 28,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1 runs one branch.")] = 3.0,
    levels: Annotated[int, typer.Option(min=1, help="Ranges of noise levels, each with a choice of its own.")] = 3,
    max_reuse: Annotated[
        list[int] | None,
        typer.Option(min=1, help="K: times in a row that a residual is reused; of several the best is taken."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Training captions to denoise, each time.")] = 8,
    resolution: Annotated[int, typer.Option(min=1, help="Side of the images in pixels.")] = 64,
    cache: Annotated[Path, typer.Option(help="Folder for the encoded pairs.")] = Path("cache"),
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's choice")] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Let a model reuse residuals where its images change least, until a budget is met. Nothing is trained.

    A few training captions are denoised again and again, each time with one block reusing its residual in one range of
    noise levels. The adapter has routers of the timestep that grade the blocks in the order found: a larger `delta`
    reuses more, a smaller one less. Works on the dense model, on `elastic-dit prune`'s routes, trained or not, and on
    other models whose routers read the timestep alone. K is 1 or 2 unless --max-reuse says otherwise.
    """
    with needs_extra("reuse", "train"):
        import torch

        from elastic_dit.elasticize import load
        from elastic_dit.pruning.base import unpruned
        from elastic_dit.pruning.noise_levels import denoising_of
        from elastic_dit.pruning.reuse import with_reuse
        from elastic_dit.training.config import DataConfig
        from elastic_dit.training.data.cache import encode
        from elastic_dit.training.families.base import family_of
    from elastic_dit.models import shipped_model

    where = pick_device(device)
    if threads:
        torch.set_num_threads(threads)
    with ProgressBar() as bar:
        bar.show("loading", 0, 0)
        family = family_of(load_quietly(model or str(shipped_model()), pick_dtype(dtype, where), where))
        source = DataConfig(path=str(data), resolution=resolution, cache=cache, limit=images)
        pairs = encode(family, source, str(data), quiet=True)
        pipe = family.pipeline
        elastic = load(pipe, adapter) if adapter else unpruned(pipe)
        denoising = denoising_of(family, pairs, images, steps, guidance, seed)
        elastic, chosen = with_reuse(
            elastic, denoising, budget, levels=levels, max_reuse=max_reuse or (1, 2), progress=bar.show
        )
        elastic.save(output)
    typer.echo(
        f"{output}: {chosen.count} of {len(chosen.order)} (range of noise levels, block) reuse, "
        f"K = {chosen.max_reuse}, delta = {elastic.delta:.3f}"
    )
    typer.echo(
        f"{chosen.flops_share:.1%} of the dense FLOPs in {steps} steps; "
        f"the latents' mean squared change is {chosen.moved:.2g}, {-10 * math.log10(chosen.moved / 4):.1f} dB"
    )
