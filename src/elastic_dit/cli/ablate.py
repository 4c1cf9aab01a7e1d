"""`elastic-dit ablate`: training recipes against one another, each with several seeds."""

from pathlib import Path
from typing import Annotated

import typer

from elastic_dit.cli.output import ProgressBar, print_table, write_bytes
from elastic_dit.cli.setup import load_quietly, needs_extra
from elastic_dit.errors import ConfigError


def ablate(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="RECIPES", help="The recipes, a YAML file.", show_default=False)],
    seeds: Annotated[str, typer.Option(help="Seeds of training, with commas between.")] = "0,1,2",
    only: Annotated[
        list[str] | None,
        typer.Option("--recipe", help="Only this recipe; may be given several times.", show_default="all"),
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Held-out pairs to score.")] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Pairs in a forward.")] = 32,
    processes: Annotated[int, typer.Option(min=1, help="Processes of a training run.")] = 1,
    train_only: Annotated[bool, typer.Option("--train-only", help="Train, and score another time.")] = False,
    score_only: Annotated[bool, typer.Option("--score-only", help="Score the runs that are done, train none.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write every number as JSON, with command and versions.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables as Markdown.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write loss by recipe as a PNG.")] = None,
) -> None:
    """Train each recipe with each seed, then score all on the same held-out pairs, noise and noise levels.

    A recipe is a change to a training config; the first one is what the others are compared with. Runs that are done
    are not made again, and one that was stopped goes on: all seeds of one recipe are no more than more runs. Several
    calls may share the work, each with its own --seeds or --recipe and --train-only.
    """
    with needs_extra("ablate", "train"):
        from elastic_dit.cli.recipes import Recipes
        from elastic_dit.cli.stages import run_stage
        from elastic_dit.evaluation.ablation import compare_recipes
        from elastic_dit.evaluation.flow_loss import judge
        from elastic_dit.training.config import TrainConfig
        from elastic_dit.training.data.cache import encode
        from elastic_dit.training.families.base import family_of
    with needs_extra("ablate", "report"):
        if plot:
            import matplotlib  # noqa: F401
    import numpy as np
    import torch

    from elastic_dit.report.ablation_tables import ablation_markdown, ablation_plot, ablation_tables

    recipes = Recipes.read(file)
    names, numbers = only or list(recipes.recipes), _seeds(seeds)
    stages = {(name, seed): recipes.stage(name, seed) for name in names for seed in numbers}
    if score_only:
        stages = {run: stage for run, stage in stages.items() if stage.done}
        names = [name for name in names if any(run[0] == name for run in stages)]
        if names[:1] != (only or list(recipes.recipes))[:1]:
            raise ConfigError(
                f"no run of the first recipe is done in {recipes.output}; the others are compared with it"
            )
    order = sorted(stages, key=lambda run: numbers.index(run[1]))  # a first look at all recipes before the next seed
    for number, (name, seed) in enumerate(order, start=1):
        stage = stages[name, seed]
        state = "done" if stage.done else stage.about
        typer.echo(f"[{number}/{len(order)}] {name}, seed {seed}: {state}", err=True)
        if not stage.done:
            run_stage(f"{name}-{seed}", stage, processes)
    if train_only:
        return
    if converted := [name for name in names if recipes.recipes[name].set.get("conversion")]:
        raise ConfigError(f"recipe {converted[0]} trains a conversion, which is scored by `judge images`: --train-only")
    config = TrainConfig.load(recipes.base, recipes.set.items())
    if config.data.validation is None:
        raise ConfigError(f"{file}: the base config has no data.validation to score on")
    adapters = {run: str(stage.makes.parent) for run, stage in stages.items()}
    highest = {run: _highest_budget(adapter) for run, adapter in adapters.items()}
    with ProgressBar() as bar:
        bar.show("loading", 0, 0)
        family = family_of(load_quietly(config.model, torch.float32, torch.device("cpu")))
        source = config.data.model_copy(update={"limit": samples})
        record = judge(
            family,
            encode(family, source, config.data.validation, quiet=True),
            list(adapters.values()),
            sorted({budget for budget in highest.values() if budget is not None}),
            samples=samples,
            batch=batch,
            command=context.obj,
            config={"data": config.data.validation, "resolution": config.data.resolution, "steps": config.steps},
            progress=bar.show,
        )
    scored = {(row["name"], row["budget"]): row for row in record.results["rows"]}
    rows = [scored[adapter, highest[run]] for run, adapter in adapters.items()]
    columns = [f"{adapter}_{highest[run]}_loss" for run, adapter in adapters.items()]
    record.samples = {name: record.samples[name] for name in ("dense_loss", *columns)}
    losses = [np.array(record.samples[name]) for name in columns]
    runs = {name: {run[1]: index for index, run in enumerate(adapters) if run[0] == name} for name in names}
    compared = compare_recipes(runs, losses, np.array(record.samples["dense_loss"]), [r["flops_share"] for r in rows])
    record.kind = "ablation"
    record.config |= {"about": recipes.about, "recipes": recipes.model_dump(mode="json"), "seeds": numbers}
    record.results = {"dense": scored["dense", None], "runs": rows, "recipes": compared}
    if json is not None:
        record.write(json)
    if markdown is not None:
        write_bytes(markdown, ablation_markdown(record).encode())
    if plot is not None:
        write_bytes(plot, ablation_plot(record))
    for table in ablation_tables(record):
        print_table(table)


def _highest_budget(adapter: str) -> float | None:
    """Where a run is scored: recipes may differ in their `budget_range`; None where it has none."""
    from elastic_dit.checkpoint import read

    limits = read(adapter).config.budget_range
    return limits[1] if limits else None


def _seeds(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0:
        raise ConfigError(f"--seeds expects whole numbers from 0 up with commas between them, got {text!r}")
    return list(dict.fromkeys(numbers))
