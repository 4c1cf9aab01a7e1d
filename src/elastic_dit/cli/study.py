"""`elastic-dit study`: what the routers decide, what each block is worth, and what reuse is."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from elastic_dit.cli.output import ProgressBar, print_table, write_bytes
from elastic_dit.cli.setup import (
    Adapter,
    Device,
    Dtype,
    Model,
    Shift,
    load_quietly,
    model_and_adapter,
    needs_extra,
    pick_device,
    pick_dtype,
)
from elastic_dit.errors import ConfigError

if TYPE_CHECKING:
    from elastic_dit.records import RunRecord

app = typer.Typer(
    no_args_is_help=True,
    help="Look into a model: the paper's Figures 2 (blocks), 7 (routes) and 6 (cache) on composed scenes.",
)

Data = Annotated[list[Path], typer.Argument(help="Folders of held-out scenes, as `data prepare` writes them.")]
PerTask = Annotated[int, typer.Option(min=1, help="Scenes for each of the six tasks.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps.", show_default="the model's")]
Levels = Annotated[str, typer.Option(help="Noise levels of true images, with commas between.")]
Batch = Annotated[int, typer.Option(min=1, help="Images in a forward.")]
Resolution = Annotated[int, typer.Option(min=1, help="Side of the images in pixels.")]
Seed = Annotated[int, typer.Option(min=0, help="Of noise; image i has seed SEED + i.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's choice")]
Json = Annotated[Path | None, typer.Option(help="Write every number as JSON, with command and versions.")]
Markdown = Annotated[Path | None, typer.Option(help="Write the tables as Markdown.")]
Plot = Annotated[Path | None, typer.Option(help="Write the figure as a PNG.")]


@app.command()
def blocks(
    context: typer.Context,
    data: Data,
    model: Model = None,
    per_task: PerTask = 8,
    levels: Levels = "0.125,0.375,0.625,0.875",
    resolution: Resolution = 64,
    batch: Batch = 32,
    seed: Seed = 0,
    json: Json = None,
    markdown: Markdown = None,
    plot: Plot = None,
    threads: Threads = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """How much each block of the dense model matters, at each noise level, in easy and in hard scenes.

    One block at a time is left out, or its MLP narrowed to a quarter, on true images with noise: what counts is how
    much the velocity changes. Easy and hard are the quarters of the scenes whose prompts ask for least and most.
    """
    sigmas = numbers("--levels", levels, 1.0)

    def measure(family: Any, scenes: Any, common: dict[str, Any]) -> "RunRecord":
        from elastic_dit.evaluation.block_study import study_blocks

        return study_blocks(family, scenes, resolution, sigmas, **common)

    common = Common(context, data, model, per_task, batch, seed, threads, device, dtype, json, markdown, plot)
    _run(common, measure)


@app.command()
def routes(
    context: typer.Context,
    data: Data,
    model: Model = None,
    adapter: Adapter = None,
    per_task: PerTask = 16,
    steps: Steps = None,
    shift: Shift = None,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Draw the images a second time, with the adapter's own delta and K.")
    ] = False,
    levels: Levels = "0.125,0.375,0.625,0.875",
    resolution: Resolution = 64,
    batch: Batch = 32,
    seed: Seed = 0,
    json: Json = None,
    markdown: Markdown = None,
    plot: Plot = None,
    threads: Threads = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """What the routers open at each step and block, for easy and hard prompts; does compute follow difficulty?

    Difficulty is measured twice. By what a prompt asks for: objects in its scene, plus paints, a number above one, a
    position, a style and a background where the caption names them. And by the dense model's flow loss on true images
    with noise, beside the FLOPs of one elastic forward on the same. Images are drawn without reuse.
    """
    sigmas = numbers("--levels", levels, 1.0)
    model, adapter = model_and_adapter(model, adapter)

    def measure(family: Any, scenes: Any, common: dict[str, Any]) -> "RunRecord":
        from elastic_dit.evaluation.route_study import study_routes
        from elastic_dit.evaluation.sampling import SampleSettings

        settings = SampleSettings(steps=steps, height=resolution, width=resolution, shift=shift)
        return study_routes(family, adapter, scenes, settings, sigmas, reuse=reuse, **common)

    common = Common(context, data, model, per_task, batch, seed, threads, device, dtype, json, markdown, plot)
    _run(common, measure)


@app.command()
def cache(
    context: typer.Context,
    data: Data,
    model: Model = None,
    adapter: Adapter = None,
    per_task: PerTask = 8,
    steps: Steps = None,
    shift: Shift = None,
    deltas: Annotated[str, typer.Option(help="Widths of the reuse band.")] = "0,0.02,0.05,0.1,0.15,0.2",
    reuses: Annotated[str, typer.Option(help="Values of K.")] = "1,3,5,10",
    fixed_delta: Annotated[float, typer.Option(min=0, max=1, help="Width of the band while K varies.")] = 0.1,
    resolution: Resolution = 64,
    batch: Batch = 32,
    seed: Seed = 0,
    json: Json = None,
    markdown: Markdown = None,
    plot: Plot = None,
    threads: Threads = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Closeness to the dense images against FLOPs: wider reuse bands, more reuses, and skipping in place of reuse.

    Three curves from the adapter's own setting: delta at its K; K at one delta; and blocks that lie up to delta above
    the threshold skipped rather than reused.
    """
    widths = numbers("--deltas", deltas, 1.0)
    counts = [int(value) for value in numbers("--reuses", reuses, 1000)]
    model, adapter = model_and_adapter(model, adapter)

    def measure(family: Any, scenes: Any, common: dict[str, Any]) -> "RunRecord":
        from elastic_dit.evaluation.cache_study import study_cache
        from elastic_dit.evaluation.sampling import SampleSettings

        settings = SampleSettings(steps=steps, height=resolution, width=resolution, shift=shift)
        prompts = [one.prompt for one in scenes]
        return study_cache(family.pipeline, adapter, prompts, settings, widths, counts, fixed_delta, **common)

    common = Common(context, data, model, per_task, batch, seed, threads, device, dtype, json, markdown, plot)
    _run(common, measure)


@app.command()
def allocation(
    context: typer.Context,
    data: Data,
    adapter: Annotated[str, typer.Option(help="Adapter folder or Hub id; its routers know a range of budgets.")],
    model: Model = None,
    per_task: PerTask = 16,
    levels: Levels = "0.125,0.375,0.625,0.875",
    budgets: Annotated[str, typer.Option(help="At least three; shares stay between the first and the last.")] = (
        "0.3,0.4,0.5,0.65,0.8,1"
    ),
    resolution: Resolution = 64,
    batch: Batch = 32,
    seed: Seed = 0,
    json: Json = None,
    markdown: Markdown = None,
    plot: Plot = None,
    threads: Threads = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """What could be gained by spending more on some samples or noise levels than on others, at one mean.

    Needs one adapter for all budgets. Each mean share is shared out by noise level, by prompt, by single sample, as
    well as anyone could who knows the losses with another noise: what a router could gain over equal shares.
    """
    sigmas, shares = numbers("--levels", levels, 1.0), numbers("--budgets", budgets, 1.0)

    def measure(family: Any, scenes: Any, common: dict[str, Any]) -> "RunRecord":
        from elastic_dit.evaluation.allocation_study import study_allocation

        return study_allocation(family, adapter, scenes, resolution, sigmas, shares, **common)

    common = Common(context, data, model, per_task, batch, seed, threads, device, dtype, json, markdown, plot)
    _run(common, measure)


def numbers(option: str, text: str, highest: float) -> list[float]:
    """Numbers as an option gives them, rising.

    Raises:
        ConfigError: something else, or a number outside 0..highest.
    """
    try:
        values = sorted({float(part) for part in text.split(",") if part.strip()})
    except ValueError:
        values = []
    if not values or not all(0 <= value <= highest for value in values):
        raise ConfigError(f"{option} expects numbers in 0..{highest:g} with commas between them, got {text!r}")
    return values


class Common(NamedTuple):
    """What all studies are asked for."""

    context: typer.Context
    data: list[Path]
    model: str | None
    per_task: int
    batch: int
    seed: int
    threads: int | None
    device: str | None
    dtype: str | None
    json: Path | None
    markdown: Path | None
    plot: Path | None


def _run(given: Common, measure: "Callable[[Any, Any, dict[str, Any]], RunRecord]") -> None:
    """Load, measure, and leave the record, the tables and the figure."""
    command = f"study {given.context.info_name}"
    with needs_extra(command, "train"):
        import torch

        from elastic_dit.evaluation.held_out import read_held_out
        from elastic_dit.models import shipped_model
        from elastic_dit.training.families.base import family_of
    with needs_extra(command, "report"):  # what would be missed only after minutes
        import matplotlib  # noqa: F401
        import torchmetrics  # noqa: F401

        from elastic_dit.report.study_plots import study_plot
        from elastic_dit.report.study_tables import study_markdown, study_tables
    where = pick_device(given.device)
    if given.threads:
        torch.set_num_threads(given.threads)
    with ProgressBar() as bar:
        bar.show("loading", 0, 0)
        folders = [str(folder) for folder in given.data]
        scenes = read_held_out(folders, given.per_task)
        model = given.model or str(shipped_model())
        family = family_of(load_quietly(model, pick_dtype(given.dtype, where), where))
        common = {"batch": given.batch, "seed": given.seed, "command": given.context.obj, "progress": bar.show}
        record = measure(family, scenes, common | {"config": {"data": folders, "model": model}})
    if given.json is not None:
        record.write(given.json)
    if given.markdown is not None:
        write_bytes(given.markdown, study_markdown(record).encode())
    if given.plot is not None:
        write_bytes(given.plot, study_plot(record))
    for table in study_tables(record):
        print_table(table)
