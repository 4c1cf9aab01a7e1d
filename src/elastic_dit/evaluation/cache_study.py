"""What the cache is worth (the paper's Figure 6): quality against compute over delta, over K, and without reuse."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image

from elastic_dit.calibration import Setting
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.evaluation.images import closeness
from elastic_dit.evaluation.route_study import load_routed
from elastic_dit.evaluation.sampling import SampleSettings, sample_images
from elastic_dit.evaluation.scene_eval import Prompt
from elastic_dit.evaluation.variants import Progress
from elastic_dit.records import Environment, RunRecord
from elastic_dit.verbs import restore


class Case(NamedTuple):
    """One point of a curve."""

    curve: str
    """`delta`, `max_reuse` or `skip`."""
    value: float
    """Of what the curve varies; of `skip`, how much tau is raised."""
    setting: Setting


def list_cases(elastic: ElasticModel, deltas: Sequence[float], reuses: Sequence[int], fixed: float) -> list[Case]:
    """Three curves from the adapter's own setting.

    `delta` at the adapter's K; `max_reuse`, which is K, at a fixed delta; and `skip`, where blocks that lie up to delta
    above tau are skipped rather than reused: tau is raised by delta, and nothing is reused.

    Args:
        elastic: with its own tau and K.
        deltas: rising.
        reuses: values of K.
        fixed: the delta at which K varies.
    """
    own = elastic.setting
    return [
        *(Case("delta", delta, own._replace(delta=delta, max_reuse=own.max_reuse if delta else 0)) for delta in deltas),
        *(Case("max_reuse", number, own._replace(delta=fixed, max_reuse=number)) for number in reuses),
        *(Case("skip", delta, own._replace(tau=min(1.0, own.tau + delta), delta=0.0, max_reuse=0)) for delta in deltas),
    ]


def study_cache(
    pipe: Any,
    adapter: str,
    prompts: Sequence[Prompt],
    settings: SampleSettings,
    deltas: Sequence[float],
    reuses: Sequence[int],
    fixed: float,
    *,
    batch: int,
    seed: int = 0,
    command: str = "",
    config: dict[str, Any] | None = None,
    progress: Progress = lambda label, done, total: None,
) -> RunRecord:
    """Draw the same prompts and seeds dense and at every setting.

    Args:
        pipe: the dense pipeline.
        adapter: folder or Hub id; it has routers.
        prompts: N texts with their seeds.
        settings: how to sample.
        deltas: see `list_cases`.
        reuses: see `list_cases`.
        fixed: see `list_cases`.
        batch: images in a forward.
        seed: added to the prompts' own.
        command: what makes the record again.
        config: settings to put into the record beside these.
        progress: see `Progress`.

    Raises:
        ConfigError: the adapter has no routers, or a setting is out of range.
    """
    pipe.set_progress_bar_config(disable=True)
    restore(pipe)
    dense, _ = _draw(pipe, None, prompts, settings, batch, seed, lambda done: progress("dense", done, len(prompts)))
    elastic = load_routed(pipe.transformer, adapter)
    cases, own = list_cases(elastic, deltas, reuses, fixed), elastic.config.model_dump()
    drawn: dict[Setting, dict[str, Any]] = {}
    samples: dict[str, list[float]] = {}
    try:
        wanted = list(dict.fromkeys(case.setting for case in cases))
        for number, setting in enumerate(wanted):
            elastic.setting = setting
            label = f"setting {number + 1} of {len(wanted)}"

            def report(done: int, label: str = label) -> None:
                progress(label, done, len(prompts))

            images, spent = _draw(pipe, elastic, prompts, settings, batch, seed, report)
            means, raw = closeness(images, dense)
            drawn[setting] = spent | means
            name = f"tau_{setting.tau:g}_delta_{setting.delta:g}_K_{setting.max_reuse}"
            samples |= {f"{name}_{key}": values for key, values in raw.items()}
    finally:
        restore(pipe)
    return RunRecord(
        kind="study-cache",
        command=command,
        environment=Environment.here(pipe.transformer.device),
        config=(config or {})
        | vars(settings)
        | {"adapter": adapter, "elastic": own, "images": len(prompts), "seed": seed}
        | {"batch": batch, "fixed_delta": fixed},
        results={
            "rows": [
                {"curve": case.curve, "value": case.value} | case.setting._asdict() | drawn[case.setting]
                for case in cases
            ]
        },
        samples=samples,
    )


def _draw(
    pipe: Any,
    elastic: ElasticModel | None,
    prompts: Sequence[Prompt],
    settings: SampleSettings,
    batch: int,
    seed: int,
    report: Any,
) -> tuple[list[Image.Image], dict[str, float]]:
    """The images, and what they cost: FLOPs, and blocks by what happened to them."""
    images: list[Image.Image] = []
    spent = whole = total = opened = reused = 0.0
    for start in range(0, len(prompts), batch):
        report(start)
        some = prompts[start : start + batch]
        seeds = [seed + one.seed for one in some]
        images += sample_images(pipe, [one.caption for one in some], seeds, settings)
        if elastic is not None:
            trace = elastic.trace
            spent, whole = spent + trace.flops_spent, whole + trace.flops_dense
            total += len(trace)
            opened += sum(taken.keep for taken in trace.values())
            reused += sum(taken.reuse for taken in trace.values())
    if elastic is None:
        return images, {}
    cost = {"flops_share": spent / whole, "open_rate": opened / total, "reuse_rate": reused / max(1.0, opened)}
    return images, cost
