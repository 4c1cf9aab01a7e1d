"""`elastic-dit bench`: time per step of an elastic transformer beside its dense twin, on random weights."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from elastic_dit.cli.output import ProgressBar, print_table, write_bytes
from elastic_dit.cli.setup import Device, Dtype, needs_extra, pick_device, pick_dtype, quiet_libraries


def bench(
    size: Annotated[
        str, typer.Option(help="flux-cpu, flux.1-dev or qwen-image; the last two need a GPU.")
    ] = "flux-cpu",
    batch: Annotated[int, typer.Option(min=1, help="Samples; each takes its own route.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.", show_default="the model's")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each variant, in turn with the dense model.")] = 7,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the blocks of both models.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the routes.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's choice")] = None,
    device: Device = None,
    dtype: Dtype = None,
    json: Annotated[Path | None, typer.Option(help="Write every number as a RunRecord.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables as Markdown.")] = None,
) -> None:
    """Measure what skipping, width and cache save per step, beside what their FLOPs predict.

    Weights are random, which judges speed and never quality. Routes have the rates of the paper's Qwen-Image
    turbo: 81% of the blocks open, 22% of them reused, mean MLP width 0.65. The routers run as well.
    """
    with needs_extra("bench", "report"):
        import torch

        from elastic_dit.bench.latency import LatencyBench
        from elastic_dit.bench.sizes import size as size_of
        from elastic_dit.report import latency as report

    chosen = size_of(size)
    where = pick_device(device)
    number = pick_dtype(dtype, where)
    if threads:
        torch.set_num_threads(threads)
    options = {"size": size, "batch": batch, "steps": steps or chosen.steps, "repeats": repeats, "seed": seed}
    options |= {"threads": threads, "device": device, "dtype": dtype}
    parts = [part for name, value in options.items() if value is not None for part in (f"--{name}", str(value))]
    quiet_libraries()
    with ProgressBar() as bar:
        bar.show("loading", 0, 0)
        measured = LatencyBench(chosen, batch, where, number, compiled=compile).measure(
            steps=steps or chosen.steps,
            repeats=repeats,
            seed=seed,
            command=shlex.join(["elastic-dit", "bench", *parts, *(["--compile"] if compile else [])]),
            config={"size": size, "compiled": compile},
            progress=bar.show,
        )
    print_table(report.speed_table(measured))
    print_table(report.routes_table(measured))
    if json is not None:
        measured.write(json)
    if markdown is not None:
        write_bytes(markdown, report.markdown(measured).encode())
