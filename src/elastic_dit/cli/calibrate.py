"""`elastic-dit calibrate`: what the dial gives on this machine."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elastic_dit.cli.demo import PROMPTS
from elastic_dit.cli.output import ProgressBar, print_table
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
    from elastic_dit.calibration import Calibration
    from elastic_dit.report.tables import Table


def calibrate(
    context: typer.Context,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt; may be given several times.", show_default="the demo's")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file with one prompt a line.")] = None,
    model: Model = None,
    adapter: Adapter = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 28,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1 runs one pass a step.")] = 3.0,
    shift: Shift = None,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels.", show_default="the pipeline's")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Pixels.", show_default="the pipeline's")] = None,
    points: Annotated[int, typer.Option(min=10, help="Settings to measure.")] = 18,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each, beside the dense model.")] = 3,
    check: Annotated[
        list[float] | None,
        typer.Option(help="A speed-up to ask for in the end, and to measure; may be given several times."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first prompt; the next has the next.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's choice")] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Measure settings of the dial against speed-up and likeness to the dense images: here, with your prompts.

    Writes calibration.json into the adapter's folder. With it `elastic.speedup = 1.8` and
    `elastic-dit generate --speedup 1.8` find their setting. The prompts run as one batch, of the size that you
    will use: the speed-up depends on it. Where there is guidance, half of the late steps take that of the step before
    on one curve of the table.
    """
    with needs_extra("calibrate", "report"):
        import torch
        import torchmetrics  # noqa: F401  what would be missed only after minutes of measuring

        from elastic_dit.bench.calibrate import calibrate as measure
        from elastic_dit.bench.compare import Bench
        from elastic_dit.evaluation.sampling import SampleSettings
    from elastic_dit.calibration import CALIBRATION_NAME
    from elastic_dit.checkpoint import local_folder, read

    texts = [*(prompt or ()), *(_lines(prompts) if prompts else ())] or list(PROMPTS)
    base, elastic = model_and_adapter(model, adapter)
    folder = local_folder(elastic)
    if read(folder).config.route is not None:
        raise ConfigError(f"{elastic} has one fixed route and no dial; nothing can be calibrated")
    if not os.access(folder, os.W_OK):  # what would be known only after minutes of measuring
        raise ConfigError(f"{folder} cannot be written to; expected an adapter folder that takes a {CALIBRATION_NAME}")
    where = pick_device(device)
    number = pick_dtype(dtype, where)
    if threads:
        torch.set_num_threads(threads)
    with ProgressBar() as bar:
        bar.show("loading", 0, 0)
        result = measure(
            Bench(load_quietly(base, number, where), str(folder)),
            texts,
            SampleSettings(steps, guidance, height, width, shift),
            points=points,
            seed=seed,
            repeats=repeats,
            checks=check or (),
            command=context.obj,
            config={"dtype": str(number).removeprefix("torch.")},
            keep=lambda table: table.write(folder),
            progress=bar.show,
        )
    print_table(_table(result))
    for made in result.checks:
        typer.echo(f"asked for {made.asked:.2f}×, measured {made.point.speedup:.2f}×")
    for missed in sorted({*(check or ())} - {made.asked for made in result.checks}):
        typer.echo(f"{missed:.2f}× lies outside of the table, or between its curves, and was not reached")
    typer.echo(f"wrote {folder / CALIBRATION_NAME}")


def _lines(file: Path) -> list[str]:
    lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"{file} is empty; expected one prompt a line")
    return lines


def _table(result: "Calibration") -> "Table":
    from elastic_dit.report.tables import Table

    rows = [
        (
            f"{point.speedup:.2f}×",
            f"{point.flops_share:.1%}",
            "–" if point.psnr is None else f"{point.psnr:.1f}",
            f"{point.ssim:.3f}",
            f"{point.setting.tau:.3f}" if point.setting.budget is None else f"{point.setting.budget:.2f}",
            f"{point.setting.delta:g}",
            str(point.setting.max_reuse),
            str(point.setting.max_guidance_reuse),
        )
        for curve in result.curves()
        for point in curve
    ]
    dial = "tau" if result.points[0].setting.budget is None else "budget"
    return Table(
        f"Dense against elastic, {result.config['steps']} steps, batch {len(result.config['prompts'])}",
        ("speed-up", "FLOPs", "PSNR", "SSIM", dial, "delta", "K", "guidance reused"),
        rows,
    )
