"""`elastic-dit bench`: time per step of elastic transformers beside dense ones and other methods, random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elastic_dit.cli.output import ProgressBar, print_table, write_bytes
from elastic_dit.cli.setup import Device, Dtype, needs_extra, pick_device, pick_dtype, quiet_libraries
from elastic_dit.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from elastic_dit.bench.sizes import Size
    from elastic_dit.records import RunRecord

    Measure = Callable[[Size, torch.device, torch.dtype, dict[str, Any]], RunRecord]

app = typer.Typer(
    no_args_is_help=True,
    help="Measure speed on random weights: they judge time, never quality. At every step each model runs "
    "between two runs of the dense one.",
)

SizeName = Annotated[
    str,
    typer.Option(
        "--size", help="flux-cpu, flux-cpu-small, or for a GPU: flux.1-dev, qwen-image, hunyuan3d-2.0, hunyuan3d-2.1."
    ),
]
Batch = Annotated[int, typer.Option(min=1, help="Samples; each takes its own route.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps of a run.", show_default="the model's")]
Repeats = Annotated[int, typer.Option(min=1, help="Timed runs of each.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the routes.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's choice")]
Compile = Annotated[bool, typer.Option(help="Also with compiled blocks.")]
Json = Annotated[Path | None, typer.Option(help="Write every number as JSON, with command and versions.")]
Markdown = Annotated[Path | None, typer.Option(help="Write the tables as Markdown.")]


@app.command()
def speed(
    context: typer.Context,
    size: SizeName = "flux-cpu",
    batch: Batch = 1,
    steps: Steps = None,
    repeats: Repeats = 7,
    compile: Compile = True,
    only: Annotated[
        list[str] | None,
        typer.Option(help='A row, as "skip + width + cache"; repeat it for more.', show_default="all"),
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = None,
    dtype: Dtype = None,
    json: Json = None,
    markdown: Markdown = None,
) -> None:
    """What skipping, width and cache save per step, beside what their FLOPs predict.

    Routes have the rates of the paper's Qwen-Image turbo: 81% of the blocks open, 22% of them reused, mean MLP
    width 0.65. The routers run as well.
    """

    def measure(chosen: "Size", where: "torch.device", number: "torch.dtype", common: dict[str, Any]) -> "RunRecord":
        from elastic_dit.bench import speed
        from elastic_dit.bench.lane import Lane

        return speed.speed(
            Lane(chosen, where, number),
            batch=batch,
            steps=steps or chosen.steps,
            repeats=repeats,
            compiled=compile,
            only=only,
            seed=seed,
            **common,
        )

    _run(context, measure, size, threads, device, dtype, json, markdown)


@app.command()
def peers(
    context: typer.Context,
    size: SizeName = "flux-cpu-small",
    only: Annotated[list[str] | None, typer.Option(help="A baseline; repeat it for more.", show_default="all")] = None,
    batch: Batch = 1,
    steps: Steps = None,
    repeats: Repeats = 7,
    compile: Compile = True,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = None,
    dtype: Dtype = None,
    json: Json = None,
    markdown: Markdown = None,
) -> None:
    """The elastic model beside other ways to be faster, at the same FLOPs where they have a dial.

    Baselines: compiled, fewer-steps, static-prune, first-block-cache, fora, learning-to-cache, taylorseer, magcache,
    fastercache, teacache, teacache-fitted, cache-dit.
    """

    def measure(chosen: "Size", where: "torch.device", number: "torch.dtype", common: dict[str, Any]) -> "RunRecord":
        from elastic_dit.baselines import baselines
        from elastic_dit.bench import peers
        from elastic_dit.bench.lane import Lane

        return peers.peers(
            Lane(chosen, where, number),
            only or list(baselines),
            batch=batch,
            steps=steps or chosen.steps,
            repeats=repeats,
            compiled=compile,
            seed=seed,
            **common,
        )

    _run(context, measure, size, threads, device, dtype, json, markdown)


@app.command()
def scaling(
    context: typer.Context,
    size: SizeName = "flux-cpu-small",
    batches: Annotated[str, typer.Option(help="Samples in a batch, mixed routes.")] = "1,2,4,8",
    tokens: Annotated[str, typer.Option(help="Image tokens; up to 16384 on a GPU.")] = "1024,2304",
    blocks: Annotated[str, typer.Option(help="Blocks.")] = "8,24,60",
    lengths: Annotated[str, typer.Option(help="Denoising steps.")] = "8,28",
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of the other axes' runs.")] = 4,
    repeats: Repeats = 7,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = None,
    dtype: Dtype = None,
    json: Json = None,
    markdown: Markdown = None,
) -> None:
    """How saving and overhead change with batch, tokens, blocks and steps. An empty list leaves an axis out."""

    def measure(chosen: "Size", where: "torch.device", number: "torch.dtype", common: dict[str, Any]) -> "RunRecord":
        from elastic_dit.bench import scaling

        given = {"batch": batches, "tokens": tokens, "blocks": blocks, "steps": lengths}
        axes: Any = {axis: _numbers(text) for axis, text in given.items()}
        return scaling.scaling(chosen, axes, where, number, steps=steps, repeats=repeats, seed=seed, **common)

    _run(context, measure, size, threads, device, dtype, json, markdown)


@app.command()
def training(
    context: typer.Context,
    size: SizeName = "flux-cpu-small",
    batch: Batch = 1,
    repeats: Repeats = 7,
    threads: Threads = None,
    device: Device = None,
    dtype: Dtype = None,
    json: Json = None,
    markdown: Markdown = None,
) -> None:
    """What an elastic training step costs beside a dense one, in time and memory."""

    def measure(chosen: "Size", where: "torch.device", number: "torch.dtype", common: dict[str, Any]) -> "RunRecord":
        from elastic_dit.bench import training
        from elastic_dit.bench.lane import Lane

        return training.training(Lane(chosen, where, number), batch=batch, repeats=repeats, **common)

    _run(context, measure, size, threads, device, dtype, json, markdown)


@app.command()
def parts(
    context: typer.Context,
    size: SizeName = "flux-cpu",
    batch: Batch = 1,
    repeats: Repeats = 21,
    threads: Threads = None,
    device: Device = None,
    dtype: Dtype = None,
    json: Json = None,
    markdown: Markdown = None,
) -> None:
    """What a router costs beside its block, and an MLP whose weights are a view beside one with a copy of its own.

    One block of each kind is built, so real sizes fit a small machine.
    """

    def measure(chosen: "Size", where: "torch.device", number: "torch.dtype", common: dict[str, Any]) -> "RunRecord":
        from elastic_dit.bench import parts

        return parts.parts(chosen, where, number, batch=batch, repeats=repeats, **common)

    _run(context, measure, size, threads, device, dtype, json, markdown)


@app.command()
def report(
    records: Annotated[list[Path], typer.Argument(help="RunRecords that the other commands wrote.")],
    output: Annotated[Path, typer.Option(help="The HTML page.")] = Path("bench.html"),
    plots: Annotated[Path | None, typer.Option(help="A folder for the plots as PNG files.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the bars as Markdown.")] = None,
) -> None:
    """One HTML page of plots and tables from records, and the bars beside what was measured."""
    with needs_extra("bench", "report"):
        from elastic_dit.records import RunRecord
        from elastic_dit.report.bench_bars import bars
        from elastic_dit.report.bench_page import bench_page, figures
        from elastic_dit.report.tables import table_markdown
    read = [RunRecord.read(file) for file in records]
    write_bytes(output, bench_page(read).encode())
    if plots is not None:
        for record in read:
            for figure in figures(record):
                write_bytes(plots / f"{figure.name}.png", figure.png)
    if markdown is not None:
        write_bytes(markdown, table_markdown(bars(read)).encode())
    print_table(bars(read))
    print(output)


def _run(
    context: typer.Context,
    measure: "Measure",
    size: str,
    threads: int | None,
    device: str | None,
    dtype: str | None,
    json: Path | None,
    markdown: Path | None,
) -> None:
    """Measure, show and write."""
    with needs_extra("bench", "report"):
        import torch

        from elastic_dit.bench.sizes import size as size_of
        from elastic_dit.report import bench_tables

    chosen, where = size_of(size), pick_device(device)
    number = pick_dtype(dtype, where)
    if threads:
        torch.set_num_threads(threads)
    quiet_libraries()
    with ProgressBar() as bar:
        bar.show("loading", 0, 0)
        common = {"command": context.obj, "config": {"size": size}, "progress": bar.show}
        record = measure(chosen, where, number, common)
    if json is not None:
        record.write(json)
    if markdown is not None:
        write_bytes(markdown, bench_tables.markdown(record).encode())
    for table in bench_tables.tables(record):
        print_table(table)


def _numbers(text: str) -> list[int]:
    try:
        values = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = [0]
    if any(value < 1 for value in values):
        raise ConfigError(f"expected whole numbers above 0 with commas between them, got {text!r}")
    return values
