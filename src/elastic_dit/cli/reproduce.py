"""`elastic-dit reproduce`: the tables of docs/results.md from nothing, stage by stage."""

from pathlib import Path
from typing import Annotated

import typer

from elastic_dit.cli.output import print_table, write_bytes
from elastic_dit.cli.setup import needs_extra


def reproduce(
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STAGE]...", help="Stages to run, with all they need; or `all`."),
    ] = None,
    file: Annotated[Path, typer.Option(help="The stages, a YAML file.")] = Path("reproduce.yaml"),
    processes: Annotated[int, typer.Option(min=1, help="Processes of a training run; 2 is fastest on 2 cores.")] = 1,
    page: Annotated[Path, typer.Option(help="Where all results are gathered, an HTML file.")] = Path("results.html"),
    records: Annotated[
        Path | None,
        typer.Option(help="Run nothing: build the page from the records in this folder, as docs/results."),
    ] = None,
) -> None:
    """Make the project's results again: data, training, pruning and judging, in the order they need.

    Without a stage, lists them. What is there already is not made again, and a stage that was stopped goes on where it
    was. Run it where reproduce.yaml is, in a clone of the repository; everything is written below that folder. To see
    what is committed on one page: `elastic-dit reproduce --records docs/results`. Some trainings took a GPU, and as a
    whole the chain has not been run: begin with one stage.
    """
    with needs_extra("reproduce", "train"):
        import yaml  # noqa: F401

    from elastic_dit.cli.stages import Stages, run_stage
    from elastic_dit.report.tables import Table

    stages = Stages.read(file)
    if not targets and records is None:
        rows = [(name, "done" if stage.done else "", stage.about) for name, stage in stages.stages.items()]
        print_table(Table(f"Stages of {file}", ("stage", "", "what"), rows, words=True))
        return
    names = stages.needed(list(stages.stages) if not targets or targets == ["all"] else targets)
    chosen = [(name, stages.stages[name]) for name in names]
    for number, (name, stage) in enumerate(chosen if records is None else (), start=1):
        typer.echo(f"[{number}/{len(names)}] {name}: {'done' if stage.done else stage.about}", err=True)
        if not stage.done:
            run_stage(name, stage, processes)
    made = [(f"{name}: {stage.about}", stage.makes) for name, stage in chosen if stage.recorded]
    if records is not None:
        made = [(about, records / file.name) for about, file in made]
    _gather([(about, file) for about, file in made if file.is_file()], page)


def _gather(made: list[tuple[str, Path]], page: Path) -> None:
    """One page of what records say, with what each is about."""
    from elastic_dit.records import RunRecord
    from elastic_dit.report.results_page import KINDS, results_page

    read = [(about, RunRecord.read(file)) for about, file in made]
    shown = [(about, record) for about, record in read if record.kind in KINDS]
    if shown:
        write_bytes(page, results_page(shown).encode())
        typer.echo(f"open {page}")
    else:
        typer.echo("no record was made that the page shows")
