"""`elastic-dit`: the commands, and what the shell sees when something is wrong."""

import os
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from elastic_dit.cli import (
    ablate,
    allocate,
    bench,
    calibrate,
    data,
    demo,
    evaluate,
    forecast,
    generate,
    info,
    judge,
    prune,
    reproduce,
    select_steps,
    study,
    train,
)
from elastic_dit.errors import ElasticDiTError, TrainingError

USAGE_ERROR, FAILURE = 2, 1

app = typer.Typer(
    name="elastic-dit",
    help="A compute dial for diffusion transformers (Elastic Diffusion Transformer, arXiv 2602.13993).",
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(generate.generate)
app.command()(train.train)
app.command()(prune.prune)
app.command()(forecast.forecast)
app.command()(allocate.allocate)
app.command()(select_steps.select_steps)
app.command()(calibrate.calibrate)
app.command()(evaluate.evaluate)
app.command()(ablate.ablate)
app.command()(reproduce.reproduce)
app.add_typer(study.app, name="study")
app.add_typer(judge.app, name="judge")
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")
app.command()(info.info)


def _version(wanted: bool) -> None:
    if wanted:
        from elastic_dit import __version__

        typer.echo(f"elastic-dit {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for bad input, 1 for a failed run, 130 for Ctrl-C.

    Args:
        arguments: what follows the program's name; None takes the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    for library in ("DIFFUSERS", "TRANSFORMERS"):  # what they say while they are imported, before `quiet_libraries`
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        code = app(given, "elastic-dit", standalone_mode=False, obj=shlex.join(["elastic-dit", *given]))
    except TrainingError as error:
        return _complain(str(error), FAILURE)
    except ElasticDiTError as error:
        return _complain(str(error), USAGE_ERROR)
    except OSError as error:
        if error.strerror is None:  # not the system's, but a library's or our own mistake
            raise
        if error.filename is None:  # a write to an open file: the disk is full
            return _complain(error.strerror, FAILURE)
        return _complain(f"{error.filename}: {error.strerror}", USAGE_ERROR)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        # click's usage errors; newer versions of typer have a click of their own, so the class is not one class
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        return _complain(f"{message()} (see --help)", USAGE_ERROR)
    return code if isinstance(code, int) else 0


def _complain(message: str, code: int) -> int:
    """One line on stderr."""
    print("elastic-dit:", " ".join(message.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
