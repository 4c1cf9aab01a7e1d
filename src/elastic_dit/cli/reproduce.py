"""`elastic-dit reproduce`: the tables of docs/results.md from nothing, stage by stage."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elastic_dit.cli.output import print_table, write_bytes
from elastic_dit.cli.setup import needs_extra

if TYPE_CHECKING:
    from elastic_dit.cli.stages import Stage


def reproduce(
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STAGE]...", help="Stages to run, with all they need; or `all`."),
    ] = None,
    file: Annotated[Path, typer.Option(help="The stages, a YAML file.")] = Path("reproduce.yaml"),
    processes: Annotated[int, typer.Option(min=1, help="Processes of a training run; 2 is fastest on 2 cores.")] = 1,
    shipped: Annotated[
        bool, typer.Option("--shipped", help="Take the models that ship, seed 0 each, in place of training them.")
    ] = False,
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
    whole the chain has not been run: begin with one stage, and with `--shipped`, which saves the longest trainings.
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
    wanted = list(stages.stages) if not targets or targets == ["all"] else targets
    chosen = [(name, stages.stages[name]) for name in stages.needed(wanted)]
    if records is None:
        if shipped:
            _copy({name: stage for name, stage in chosen if not stage.done})
        missing = stages.needed(wanted, missing=True)
        if not missing:
            typer.echo("nothing to run: it is all there", err=True)
        for number, name in enumerate(missing, start=1):
            typer.echo(f"[{number}/{len(missing)}] {name}: {stages.stages[name].about}", err=True)
            run_stage(name, stages.stages[name], processes)
    made = [(f"{name}: {stage.about}", stage.makes) for name, stage in chosen if stage.recorded]
    if records is not None:
        made = [(about, records / file.name) for about, file in made]
    _gather([(about, file) for about, file in made if file.is_file()], page)


def _copy(stages: dict[str, "Stage"]) -> None:
    """What ships, where these stages would leave it."""
    from elastic_dit.cli.shipped import copy_shipped
    from elastic_dit.models.weights import shipped_folder

    for name, stage in stages.items():
        if stage.ships:
            copy_shipped(shipped_folder(stage.ships), stage.makes.parent)
            typer.echo(f"{name}: {stage.makes.parent} is {stage.ships}, which ships", err=True)


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
