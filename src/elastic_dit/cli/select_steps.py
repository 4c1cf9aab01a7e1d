"""`elastic-dit select-steps`: as many steps as a prompt needs, by what more and fewer do to images of such prompts."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from elastic_dit.cli.output import ProgressBar
from elastic_dit.cli.setup import Device, Dtype, Model, Shift, load_quietly, needs_extra, pick_device, pick_dtype
from elastic_dit.errors import ConfigError


def select_steps(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder of training scenes, as `data prepare` writes it.")],
    output: Annotated[Path, typer.Option(help="The adapter folder to write.", show_default=False)],
    model: Model = None,
    adapter: Annotated[
        str | None, typer.Option(help="Adapter folder or Hub id to start from.", show_default="the dense model")
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps of the sampler, of which each sample runs a part.")] = 12,
    intervals: Annotated[str, typer.Option(help="2,3,4 lets a prompt run every 2nd, 3rd or 4th step.")] = "2,3,4",
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the steps that run, on average over prompts.")
    ] = 0.333,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1 runs one branch.")] = 3.0,
    shift: Shift = None,
    guidance_from: Annotated[
        float | None, typer.Option(min=0, max=1, help="Noise level above which there is no guidance.")
    ] = None,
    guidance_reuse_below: Annotated[
        float | None, typer.Option(min=0, max=1, help="Noise level below which earlier guidance is taken again.")
    ] = None,
    guidance_fade: Annotated[
        float | None, typer.Option(min=0, max=1, help="What is left of it from one of the sampler's steps to the next.")
    ] = None,
    judge: Annotated[
        Path | None, typer.Option(help="Folder of `judge train`.", show_default="the shipped judge")
    ] = None,
    per_task: Annotated[int, typer.Option(min=2, help="Training scenes of each of the six tasks.")] = 256,
    images: Annotated[int, typer.Option(min=1, help="Drawn of each scene at each interval.")] = 1,
    scores: Annotated[
        Path | None,
        typer.Option(
            help="Where it is kept which images are right; what is there is not drawn again.",
            show_default="beside the output",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in a forward.")] = 64,
    resolution: Annotated[int, typer.Option(min=1, help="Side of the images in pixels.")] = 64,
    json: Annotated[Path | None, typer.Option(help="Write every number as JSON, with command and versions.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's choice")] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Let each prompt have as many steps as it needs. Nothing is trained.

    Training scenes are drawn with every 2nd, 3rd and 4th step of the sampler run, and judged: does the image show what
    the caption asks for? From the text it is then predicted how likely that is with more or fewer steps, and a prompt
    that is as good with few pays for one that is not. The more scenes, and images of each, the better the prediction.
    `elastic.step_share` turns the mean share of steps afterwards. For prompts and a judge of your own see
    `elastic_dit.pruning.step_selection`.
    """
    with needs_extra("select-steps", "judge"):
        import torch

        from elastic_dit.checkpoint import digest
        from elastic_dit.evaluation.sampling import SampleSettings, sample_images
        from elastic_dit.evaluation.scene_eval import choose_prompts
        from elastic_dit.evaluation.scene_scores import SceneScores, by_task, followed
        from elastic_dit.evaluation.sprite_detector import DETECTOR, SpriteDetector
        from elastic_dit.pruning.base import unpruned
        from elastic_dit.pruning.step_selection import with_step_selection
        from elastic_dit.records import Environment, RunRecord
        from elastic_dit.training.data.sources import read_scenes
        from elastic_dit.verbs import load
    from elastic_dit.models import shipped_judge, shipped_model

    try:
        wanted = [int(part) for part in intervals.split(",")]
    except ValueError as error:
        raise ConfigError(f"--intervals {intervals}: expected whole numbers with commas between, as 2,3,4") from error
    where = pick_device(device)
    if threads:
        torch.set_num_threads(threads)
    with ProgressBar() as bar:
        bar.show("loading", 0, 0)
        prompts = choose_prompts(((caption, scene) for _, caption, scene in read_scenes(str(data))), per_task)
        pipe = load_quietly(model or str(shipped_model()), pick_dtype(dtype, where), where)
        pipe.set_progress_bar_config(disable=True)
        detector = SpriteDetector.load((judge or shipped_judge()) / DETECTOR).to(where)
        elastic = load(pipe, adapter) if adapter else unpruned(pipe)
        own = {"guidance_from": guidance_from, "guidance_fade": guidance_fade}
        own |= {"guidance_reuse_below": guidance_reuse_below}
        own |= {"max_guidance_reuse": None if guidance_reuse_below is None else steps}
        for name, value in own.items():
            if value is not None:
                setattr(elastic.config, name, value)
        settings = SampleSettings(steps, guidance, resolution, resolution, shift)
        captions = [prompt.caption for prompt in prompts]
        drawn_by = [elastic.config.model_dump(exclude_defaults=True), digest(pipe.transformer), digest(detector)]
        kept = SceneScores(scores or output.with_name(f"{output.name}-scores.safetensors"), prompts, settings, drawn_by)

        def read() -> None:
            for start in range(0, len(prompts), batch):
                bar.show("prompts", start, len(prompts))
                some = captions[start : start + batch]
                sample_images(pipe, some, range(len(some)), replace(settings, steps=1))

        def score(interval: int) -> torch.Tensor:
            return kept(f"every_{interval}", pipe, detector, images=images, batch=batch, progress=bar.show)

        selection = with_step_selection(elastic, wanted, share, read, score)
        selection.elastic.save(output, selection.elastic.weights.dtype)
    if json is not None:
        results = {"taken": selection.taken, "chosen": selection.chosen, "alike": selection.alike}
        results |= {"right": selection.scores.mean(dim=0).tolist(), "by_task": by_task(selection.scores, prompts)}
        results |= {"followed": followed(selection.shares, selection.scores, prompts)}
        config = vars(settings) | own | {"intervals": wanted, "share": share}
        config |= {"scenes": len(prompts), "images": images}
        environment = Environment.here(pipe.transformer.device)
        RunRecord(
            kind="select-steps",
            command=context.obj,
            environment=environment,
            config=config,
            results=results,
            samples={"share": selection.shares.tolist()},
        ).write(json)
    for interval, part, score in zip(wanted, selection.taken, selection.scores.mean(dim=0).tolist(), strict=True):
        typer.echo(f"every {interval}. step: {part:.0%} of the prompts; were all at it, {score:.1%} would be right")
    typer.echo(
        f"{output}: {selection.chosen:.1%} right, of prompts that it was not fitted to; with equal steps for all,"
    )
    typer.echo(f"as many on average, {selection.alike:.1%}")
