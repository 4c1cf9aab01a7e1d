"""`elastic-dit allocate`: which forwards get how much of a budget, by what every budget does to them."""

from pathlib import Path
from typing import Annotated

import typer

from elastic_dit.cli.output import ProgressBar
from elastic_dit.cli.setup import Device, Dtype, Model, Shift, load_quietly, needs_extra, pick_device, pick_dtype


def allocate(
    data: Annotated[Path, typer.Argument(help="Folder of training pairs, as `data prepare` writes it.")],
    adapter: Annotated[str, typer.Option(help="Adapter folder or Hub id, for all budgets.", show_default=False)],
    output: Annotated[Path, typer.Option(help="The adapter folder to write.", show_default=False)],
    model: Model = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps it is meant for.")] = 28,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1 runs one branch.")] = 3.0,
    images: Annotated[int, typer.Option(min=2, help="Training captions to denoise.")] = 128,
    shift: Shift = None,
    resolution: Annotated[int, typer.Option(min=1, help="Side of the images in pixels.")] = 64,
    cache: Annotated[Path, typer.Option(help="Folder for the encoded pairs.")] = Path("cache"),
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's choice")] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Let every sample and step have a budget of its own, so that the mean is the one you ask for. Nothing is trained.

    For an adapter with a dial for all budgets. A few training captions are denoised, and every step of them is taken
    again at every budget. From what the third block is given it is then predicted what each budget would do to the
    step, and what can spare compute pays for what cannot. Choose it for the steps and the guidance you will use.
    """
    with needs_extra("allocate", "train"):
        import torch

        from elastic_dit.pruning.allocation import with_allocation
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
        denoising = denoising_of(family, pairs, images, steps, guidance, seed)
        found = with_allocation(load(family.pipeline, adapter), denoising, bar.show)
        found.elastic.save(output, found.elastic.weights.dtype)
    typer.echo(f"{output}: budgets by step, from the first to the last, where the mean is {found.budget:.0%}:")
    typer.echo(" ".join(f"{budget:.0%}" for budget in found.by_step))
    typer.echo(f"of one step's forwards they differ by {found.apart:.1%} (standard deviation); the prediction explains")
    typer.echo(f"{found.explained:.0%} of what the harm of the lowest budget varies by within a step")
