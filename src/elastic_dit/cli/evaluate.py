"""`elastic-dit evaluate`: how much quality an adapter keeps at the compute it spends."""

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from elastic_dit.cli.output import ProgressBar, print_table, write_bytes
from elastic_dit.cli.setup import Device, Dtype, Shift, load_quietly, needs_extra, pick_device, pick_dtype
from elastic_dit.errors import ConfigError


def evaluate(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder of held-out pairs, as `data prepare` writes it.")],
    model: Annotated[
        str | None, typer.Option(help="Dense pipeline, folder or Hub id.", show_default="the shipped model")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="Adapter folder or Hub id; may be given several times.", show_default="the shipped one"),
    ] = None,
    budgets: Annotated[
        str, typer.Option(help="For adapters that know a range of budgets, with commas between.")
    ] = "0.3,0.4,0.5,0.65,0.8,1",
    samples: Annotated[int, typer.Option(min=2, help="Pairs to score.")] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Pairs in a forward.")] = 32,
    images: Annotated[int, typer.Option(min=0, help="Captions to sample images for; 0: none.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps of the images.", show_default="the model's")
    ] = None,
    shift: Shift = None,
    resolution: Annotated[int, typer.Option(min=1, help="Side of the images in pixels.")] = 64,
    cache: Annotated[Path, typer.Option(help="Folder for the encoded pairs.")] = Path("cache"),
    seed: Annotated[int, typer.Option(min=0, help="Of noise and noise levels.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write every number as JSON, with command and versions.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table as Markdown.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write loss against compute as a PNG.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's choice")] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Flow loss on held-out pairs, dense and elastic: same samples, same noise, beside the FLOPs that were spent.

    An adapter trained with `budget_range` has a row for each budget, others one as they are. With --images also how
    close the images are to the dense model's, for the first captions of the data.
    """
    with needs_extra("evaluate", "train"):
        import torch

        from elastic_dit.evaluation.flow_loss import judge
        from elastic_dit.evaluation.images import judge_images
        from elastic_dit.evaluation.sampling import SampleSettings
        from elastic_dit.training.config import DataConfig
        from elastic_dit.training.data.cache import encode
        from elastic_dit.training.data.sources import read_pairs
        from elastic_dit.training.families.base import family_of
    with needs_extra("evaluate", "report"):
        if images or plot:  # what would be missed only after minutes of measuring
            import matplotlib  # noqa: F401
            import torchmetrics  # noqa: F401
    from elastic_dit.models import shipped_adapter, shipped_model
    from elastic_dit.report.evaluation_plots import loss_plot
    from elastic_dit.report.evaluation_tables import loss_markdown, loss_tables

    chosen = shares(budgets)
    if model is not None and not adapter:
        raise ConfigError(f"--model {model} came without --adapter; expected the adapter that makes it elastic")
    where = pick_device(device)
    if threads:
        torch.set_num_threads(threads)
    with ProgressBar() as bar:
        bar.show("loading", 0, 0)
        family = family_of(load_quietly(model or str(shipped_model()), pick_dtype(dtype, where), where))
        source = DataConfig(path=str(data), resolution=resolution, cache=cache, limit=samples)
        adapters = adapter or [str(shipped_adapter())]
        record = judge(
            family,
            encode(family, source, str(data), quiet=True),
            adapters,
            chosen,
            samples=samples,
            batch=batch,
            seed=seed,
            command=context.obj,
            config={"data": str(data), "resolution": resolution, "images": images, "steps": steps, "shift": shift},
            progress=bar.show,
        )
        if images:
            prompts = [caption for _, caption in islice(read_pairs("webdataset", str(data)), images)]
            settings = SampleSettings(steps=steps, height=resolution, width=resolution, shift=shift)
            family.pipeline.set_progress_bar_config(disable=True)
            common = {"batch": batch, "seed": seed, "progress": bar.show}
            record.results["images"], raw = judge_images(family.pipeline, adapters, chosen, prompts, settings, **common)
            record.samples |= raw
            record.config["images"] = len(prompts)
    if json is not None:
        record.write(json)
    if markdown is not None:
        write_bytes(markdown, loss_markdown(record).encode())
    if plot is not None:
        write_bytes(plot, loss_plot(record))
    for table in loss_tables(record):
        print_table(table)


def shares(text: str) -> list[float]:
    """Budgets as an option gives them."""
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = [0.0]
    if not all(0 < value <= 1 for value in values):
        raise ConfigError(f"--budgets expects shares above 0 and up to 1 with commas between them, got {text!r}")
    return values
