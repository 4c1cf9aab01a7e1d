"""`elastic-dit demo`: dense and elastic side by side, with pictures."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elastic_dit.cli.output import ProgressBar, encode_image, print_table, write_bytes
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

if TYPE_CHECKING:
    from elastic_dit.bench.compare import Comparison

PROMPTS = (
    "a red heart",
    "a dog face",
    "a red apple on a white background",
    "a happy face",
    "two bananas",
    "a frog above a mushroom on a green checkered background, glossy 3d render",
)
"""From plain to crowded."""


def demo(
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the page and the pictures.")] = Path("demo"),
    json: Annotated[Path | None, typer.Option(help="Also write every number as a RunRecord.")] = None,
    model: Model = None,
    adapter: Adapter = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 28,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1 runs one pass a step.")] = 3.0,
    shift: Shift = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first prompt; the next has the next.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each model, in a batch and alone.")] = 2,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's choice")] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Run the same prompts dense and elastic, in turn; measure both and show them on one page.

    Writes index.html (needs no network), dense.png, elastic.png, side_by_side.png and heat_map.png.
    """
    with needs_extra("demo", "report"):
        import jinja2  # noqa: F401  what would be missed only after minutes of measuring
        import matplotlib  # noqa: F401
        import torch
        import torchmetrics  # noqa: F401

        from elastic_dit.bench.compare import Bench
        from elastic_dit.evaluation.sampling import SampleSettings

    base, elastic = model_and_adapter(model, adapter)
    where = pick_device(device)
    number = pick_dtype(dtype, where)
    if threads:
        torch.set_num_threads(threads)
    for folder in (output, json.parent if json else output):
        folder.mkdir(parents=True, exist_ok=True)
    prompts = list(prompt or PROMPTS)
    config = {"model": model or "shipped", "adapter": adapter or "shipped", "dtype": str(number).removeprefix("torch.")}
    options = {"model": model, "adapter": adapter, "steps": steps, "guidance": guidance, "shift": shift, "seed": seed}
    machine = {"repeats": repeats, "threads": threads, "device": device, "dtype": dtype}
    command = _command(options | machine, prompt or [])
    with ProgressBar() as bar:
        bar.show("loading", 0, 0)
        bench = Bench(load_quietly(base, number, where), elastic)
        comparison = bench.compare(
            prompts,
            SampleSettings(steps=steps, guidance=guidance, shift=shift),
            seed=seed,
            repeats=repeats,
            command=command,
            config=config,
            progress=bar.show,
        )
        bar.show("drawing", 1, 1)
        page = _write(comparison, output)
    if json is not None:
        comparison.record.write(json)
    _print(comparison, page)


def _write(comparison: "Comparison", output: Path) -> Path:
    from elastic_dit.report.page import demo_page
    from elastic_dit.report.plots import enlarged, heat_map, side_by_side
    from elastic_dit.training.samples import grid

    record, dense, elastic = comparison.record, comparison.dense, comparison.elastic
    for name, images in (("dense", dense), ("elastic", elastic)):
        sheet = grid([enlarged(image) for image in images], gap=12)
        write_bytes(output / f"{name}.png", encode_image(sheet))
    write_bytes(output / "side_by_side.png", side_by_side(record, dense, elastic))
    write_bytes(output / "heat_map.png", heat_map(record))
    return write_bytes(output / "index.html", demo_page(record, dense, elastic).encode())


def _print(comparison: "Comparison", page: Path) -> None:
    from rich.console import Console

    from elastic_dit.report.demo_tables import compute_table, headline, latency_table

    print_table(latency_table(comparison.record))
    print_table(compute_table(comparison.record))
    console = Console(highlight=False)
    console.print("; ".join(f"[bold]{value}[/bold] {label}" for value, label in headline(comparison.record)))
    console.print(f"open [bold]{page}[/bold]", soft_wrap=True)


def _command(options: dict[str, Any], prompts: list[str]) -> str:
    """The command that makes the record again."""
    parts = ["elastic-dit", "demo"]
    for name, value in options.items():
        if value is not None:
            parts += [f"--{name}", str(value)]
    for prompt in prompts:
        parts += ["--prompt", prompt]
    return shlex.join(parts)
