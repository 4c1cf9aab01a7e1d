"""`elastic-dit data`: the small model's training data."""

from pathlib import Path
from typing import Annotated

import typer

from elastic_dit.cli.setup import needs_extra
from elastic_dit.errors import ConfigError

app = typer.Typer(help="Training data for the small model.", no_args_is_help=False)


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def prepare(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder for the shards.", show_default=False)],
    sources: Annotated[
        Path | None,
        typer.Option(help="Folder for the emoji packages, fetched if missing.", show_default="OUTPUT/sources"),
    ] = None,
    size: Annotated[int, typer.Option(min=16, help="Side of the images in pixels.")] = 64,
    scenes: Annotated[int, typer.Option(min=0, help="Composed training scenes, beside the single emoji.")] = 24_000,
    variants: Annotated[int, typer.Option(min=1, help="Training images of each emoji alone.")] = 4,
    everyday: Annotated[
        bool,
        typer.Option(
            "--everyday", help="Only 42 everyday concepts of about 960, none held out: what the small model learns."
        ),
    ] = False,
    concepts: Annotated[
        str | None,
        typer.Option(help='Only these concepts, none held out: "star, fish, house".', show_default="all"),
    ] = None,
    styles: Annotated[
        str | None, typer.Option(help="Only these styles: 3d, noto, twemoji, with commas between.", show_default="all")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split and of every random choice.")] = 0,
) -> None:
    """Fetch free emoji graphics and write captioned images as WebDataset shards (train, val, test)."""
    if everyday and concepts is not None:
        raise ConfigError(f"got --everyday and --concepts {concepts!r}; expected one of them")
    with needs_extra("data prepare", "train"):
        from elastic_dit.training.data.prepare import prepare as write_shards
        from elastic_dit.training.data.sprites import EVERYDAY

        counts = write_shards(
            output,
            sources or output / "sources",
            size=size,
            scenes=scenes,
            variants=variants,
            concepts=EVERYDAY if everyday else _words(concepts),
            styles=_words(styles),
            seed=seed,
        )
    typer.echo(f"{output}: " + ", ".join(f"{number} {split}" for split, number in counts.items()))


def _words(text: str | None) -> frozenset[str] | None:
    """Those between the commas."""
    return None if text is None else frozenset(word.strip() for word in text.split(",") if word.strip())
