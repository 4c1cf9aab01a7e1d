"""`elastic-dit prune`: one route for every sample and step, as an adapter to train."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from elastic_dit.cli.output import ProgressBar
from elastic_dit.cli.setup import Device, Dtype, Model, Shift, load_quietly, needs_extra, pick_device, pick_dtype
from elastic_dit.errors import ConfigError

WEIGHED = 16
"""Images by which noise levels are weighed."""


def prune(
    data: Annotated[Path, typer.Argument(help="Folder of training pairs, as `data prepare` writes it.")],
    output: Annotated[Path, typer.Option(help="The adapter folder to write.", show_default=False)],
    method: Annotated[str, typer.Option(help="greedy, hierarchical, ppcl, random or tinyfusion.")] = "greedy",
    budget: Annotated[float, typer.Option(help="Share of the dense blocks' FLOPs to spend, or of their time.")] = 0.5,
    of: Annotated[
        Literal["flops", "time"],
        typer.Option(help="What the budget is a share of: FLOPs, or the blocks' time for one image on this machine."),
    ] = "flops",
    levels: Annotated[
        int, typer.Option(min=1, help="Ranges of noise levels, each with a route of its own; --samples is for each.")
    ] = 1,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Denoising steps the routes are meant for: each range of noise levels then counts by how many of them "
            "it has and how far an error there moves the image.",
            show_default="all ranges count alike",
        ),
    ] = None,
    down_to: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="One model for every budget from 1 down to this share: routes within each other. The dial then stands "
            "at --budget.",
            show_default="one budget",
        ),
    ] = None,
    guidance: Annotated[
        float,
        typer.Option(
            help="Guidance scale of --steps: give the one you will sample with, 3 in other commands; 1 runs one branch."
        ),
    ] = 1.0,
    shift: Shift = None,
    model: Model = None,
    samples: Annotated[int, typer.Option(min=2, help="Pairs to choose by.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Pairs in a forward.")] = 16,
    resolution: Annotated[int, typer.Option(min=1, help="Side of the images in pixels.")] = 64,
    cache: Annotated[Path, typer.Option(help="Folder for the encoded pairs.")] = Path("cache"),
    seed: Annotated[int, typer.Option(min=0, help="Of noise, and of what the method draws.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's choice")] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Choose once which blocks stay and how wide their MLPs are: the baseline of an adaptive model.

    The adapter has no routers. Train it as any other: `elastic-dit train` with `adapter: OUTPUT`. With --levels the
    choice differs by noise level, and routers that see nothing else carry it out.
    """
    with needs_extra("prune", "train"):
        import torch

        from elastic_dit.evaluation.flow_loss import noisy_batches
        from elastic_dit.pruning import prunings
        from elastic_dit.pruning.base import share, unpruned, whole
        from elastic_dit.pruning.noise_levels import denoising_of, even, weigh
        from elastic_dit.pruning.prune import prune
        from elastic_dit.pruning.times import block_times
        from elastic_dit.training.config import DataConfig
        from elastic_dit.training.data.cache import encode
        from elastic_dit.training.families.base import family_of
    from elastic_dit.models import shipped_model

    if down_to and levels > 1:
        raise ConfigError("--down-to has one route for each budget, at all noise levels: leave --levels out")
    if down_to and of == "time":
        raise ConfigError("--down-to gives a dial of FLOPs, and --of time has one budget: leave one of them out")
    if steps and levels == 1:
        raise ConfigError("--steps weighs ranges of noise levels against each other: give --levels 2 or more")
    chosen, where = prunings[method], pick_device(device)
    if threads:
        torch.set_num_threads(threads)
    with ProgressBar() as bar:
        bar.show("loading", 0, 0)
        family = family_of(load_quietly(model or str(shipped_model()), pick_dtype(dtype, where), where, shift))
        batch = min(batch, samples)
        samples = levels * (samples // batch * batch if levels > 1 else samples)
        source = DataConfig(path=str(data), resolution=resolution, cache=cache, limit=samples)
        pairs = encode(family, source, str(data), quiet=True)
        batches = list(noisy_batches(family, pairs, samples, batch, seed, in_order=levels > 1))
        weights = even(levels)
        if steps:
            bar.show("weighing noise levels", 0, 0)
            denoising = denoising_of(family, pairs, min(WEIGHED, samples), steps, guidance, seed)
            weights = weigh(whole(family.pipeline, batches), denoising, levels)
        times = None
        if of == "time":
            one, _ = next(noisy_batches(family, pairs, 1, 1, seed))
            times = block_times(unpruned(family.pipeline), one, bar.show)
        elastic = prune(
            family.pipeline,
            batches,
            chosen,
            budget,
            seed=seed,
            levels=weights,
            lowest=down_to,
            times=times,
            progress=bar.show,
        )
        family.pipeline.transformer(**batches[0][0], return_dict=False)
        elastic.save(output)
    costs = elastic.costs
    if path := elastic.config.init_path:
        typer.echo(
            f"{output}: {len(path)} changes from 100% to {down_to:.0%} of FLOPs; the dial stands at {budget:.0%}"
        )
        return
    for number, (level, (_, route)) in enumerate(zip(weights, elastic.config.routes, strict=True)):
        at = f" for noise levels {number / levels:.3g} to {(number + 1) / levels:.3g}" if levels > 1 else ""
        at += f" ({round(level.visits * steps)} of {steps} steps, worth {level.worth:.0%})" if steps else ""
        spent = f"{share(route, costs):.1%} of FLOPs" + (f", {share(route, times):.1%} of the time" if times else "")
        typer.echo(f"{output}{at}: {sum(map(bool, route))} of {len(route)} blocks, {spent}")
        typer.echo("widths: " + " ".join(f"{width:.2f}" if width else "–" for width in route))
