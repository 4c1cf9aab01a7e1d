"""What `elastic-dit study` measured, as tables."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from elastic_dit.records import RunRecord
from elastic_dit.report.evaluation_tables import model_name
from elastic_dit.report.judge_tables import TASKS
from elastic_dit.report.tables import Table, percent, table_markdown, where

CURVES = {
    "delta": "reuse, by δ (K = {max_reuse})",
    "max_reuse": "reuse, by K (δ = {delta:g})",
    "skip": "skipped instead, by δ",
}
"""What the curves of a cache study are called."""


def study_tables(record: RunRecord) -> list[Table]:
    """All tables of a record of one of `STUDIES`."""
    return STUDIES[record.kind](record)


def study_markdown(record: RunRecord) -> str:
    """The tables and the command that makes them again."""
    return "\n".join([*map(table_markdown, study_tables(record)), f"`{record.command}`", ""])


def curve_name(curve: str, rows: Sequence[dict[str, Any]], config: dict[str, Any]) -> str:
    """What a curve of a cache study is called."""
    own = max((row["max_reuse"] for row in rows if row["curve"] == "delta"), default=0)
    return CURVES[curve].format(max_reuse=own, delta=config["fixed_delta"])


def _blocks(record: RunRecord) -> list[Table]:
    """One row a block and what was done to it; then how much samples agree."""
    levels = record.config["levels"]
    tables: list[Table] = []
    titles = {"left_out": "Change of the velocity without a block", "quarter": "Change with an MLP of width 1/4"}
    for name, title in titles.items():
        easy, hard = (np.array(record.results[name][group]).T for group in ("easy", "hard"))  # (L, K)
        rows = [
            (str(block + 1), *(f"{a:.4f} / {b:.4f}" for a, b in zip(*pair, strict=True)))
            for block, pair in enumerate(zip(easy, hard, strict=True))
        ]
        rows.append(("agreement", *(f"{value:.2f}" for value in record.results[name]["agreement"])))
        tables.append(Table(title, ("block", *(f"σ = {level:g}" for level in levels)), rows))
    used = record.config["used"]
    note = (
        f"Easy / hard: means over the {used['easy']} easiest and the {used['hard']} hardest of "
        f"{record.config['scenes']} scenes. Squared error of the velocity as a share of the dense velocity's "
        "square, on true images with noise of level σ, one block changed at a time, dense weights, nothing trained. "
        "Agreement: rank correlation of a sample's order of blocks with the mean of all others', averaged; "
        f"1: the same blocks matter in all. {where(record)}"
    )
    last = tables.pop()
    return [*tables, Table(last.title, last.header, last.rows, note)]


def _routes(record: RunRecord) -> list[Table]:
    """What was spent, whether it follows difficulty, and compute by task."""
    results, runs = record.results, record.results["runs"]
    easy, hard = (results["difficulty"][group] for group in ("easy", "hard"))
    names = [_run_name(run) for run in runs]
    spent = [
        (
            name,
            f"{run['flops_share']:.1%} ± {run['deviation']:.1%}",
            f"{run['lowest']:.1%} to {run['highest']:.1%}",
            percent(run["easy"]["flops_share"]),
            percent(run["hard"]["flops_share"]),
            percent(run["open_rate"]),
            percent(run["reuse_rate"]),
        )
        for name, run in zip(names, runs, strict=True)
    ]
    forwards = results["forwards"]
    scene, single = "what the prompt asks for", f"one forward, σ = {_listed(record.config['levels'])}"
    related = [
        (f"image, {name}", scene, _correlation(run["correlation"])) for name, run in zip(names, runs, strict=True)
    ]
    related += [(single, scene, _correlation(forwards["scene"]))]
    related += [(single, "flow loss of the dense model", _correlation(forwards["loss"]))]
    tasks = [
        (TASKS[row["task"]], f"{row['difficulty']:.1f}", *(percent(row[key]) for key in row if key.endswith("_share")))
        for row in results["tasks"]
    ]
    levels = [
        (f"{level:g}", f"{share:.1%} ± {apart:.1%}", f"{by_scene:+.2f}", f"{by_loss:+.2f}")
        for level, share, apart, by_scene, by_loss in zip(
            record.config["levels"],
            forwards["flops_share"],
            forwards["deviation"],
            forwards["scene"]["by_stratum"],
            forwards["loss"]["by_stratum"],
            strict=True,
        )
    ]
    steps = f"{record.config['steps']} steps" if record.config["steps"] else "the model's steps"
    return [
        Table(
            f"{model_name(record.config['adapter'])}: {record.config['scenes']} images, {steps}",
            ("", "FLOPs", "from … to", "easiest quarter", "hardest quarter", "open", "reused"),
            spent,
            "FLOPs: share of the dense blocks', routers included, of each image; ±: standard deviation over images. "
            f"Easiest and hardest: a difficulty of {_range(easy)} and of {_range(hard)}. Open: not skipped. Reused: "
            "share of the open blocks; both in the pass with the prompt.",
        ),
        Table(
            "Does compute follow difficulty?",
            ("compute of", "difficulty", "rank correlation (95%)"),
            related,
            "Spearman's; the interval by bootstrap over samples. What the prompt asks for: objects in the scene, plus "
            "paints, a number above one, a position, a style and a background where the caption names them. One "
            "forward: on the true images with noise of level σ; correlated within each noise level, then averaged.",
        ),
        Table("By task", ("", "difficulty", *(f"FLOPs, {name}" for name in names)), tasks),
        Table(
            "By noise level, one forward",
            ("σ", "FLOPs", "correlation with the prompt's", "with the dense flow loss"),
            levels,
            where(record),
        ),
    ]


def _cache(record: RunRecord) -> list[Table]:
    rows = record.results["rows"]
    cells = [
        (
            curve_name(row["curve"], rows, record.config),
            f"{row['value']:g}",
            percent(row["flops_share"]),
            percent(row["open_rate"]),
            percent(row["reuse_rate"]),
            _mean(row["psnr"], row["psnr_interval"], 2),
            _mean(row["ssim"], row["ssim_interval"], 3),
        )
        for row in rows
    ]
    steps = f"{record.config['steps']} steps" if record.config["steps"] else "the model's steps"
    note = (
        "The same prompts and seeds for all. FLOPs: share of the dense blocks', routers included. Open: not skipped. "
        "Reused: share of the open blocks that added a stored residual. Skipped instead: blocks whose probability is "
        "less than δ above the threshold are skipped, and nothing is reused. PSNR and SSIM: against the dense images. "
        f"±: half of the 95% interval, by bootstrap over images. {where(record)}"
    )
    title = f"{model_name(record.config['adapter'])}: {record.config['images']} images, {steps}"
    return [Table(title, ("", "value", "FLOPs", "open", "reused", "PSNR (dB)", "SSIM"), cells, note)]


def _allocation(record: RunRecord) -> list[Table]:
    """A row for each way to share out, the loss and what it gains at each budget."""
    rows, levels = record.results["rows"], record.config["levels"]
    header = ("shares differ by", *(f"{row['flops_share']:.1%} of the FLOPs" for row in rows))
    cells = [(name, *(_gained(row["ways"][name], row["ways"]["equal"]) for row in rows)) for name in rows[0]["ways"]]
    spent = [
        (f"{row['flops_share']:.1%}", *(percent(share) for share in row["ways"]["noise level"]["spent"]))
        for row in rows
    ]
    note = (
        f"Flow loss over the dense model's, and in brackets the 95% interval of its change beside equal shares, by "
        f"bootstrap over {record.config['scenes']} scenes, below 0 is better; at σ = {_listed(levels)}. One model with "
        "routes for every budget; shares are chosen with one noise, knowing the losses, and scored with another. "
        f"Prompt: by the number of objects and attributes that it asks for. Prediction: by what a linear regression on "
        f"other scenes makes of the third block's input. {where(record)}"
    )
    return [
        Table(
            "Spent by noise level, where shares differ by it", ("mean", *(f"σ = {level:g}" for level in levels)), spent
        ),
        Table("The best way to share out a mean share of FLOPs", header, cells, note),
    ]


STUDIES: dict[str, Callable[[RunRecord], list[Table]]] = {
    "study-blocks": _blocks,
    "study-routes": _routes,
    "study-cache": _cache,
    "study-allocation": _allocation,
}
"""Kinds of records that `elastic-dit study` writes, and their tables."""


def _run_name(run: dict[str, Any]) -> str:
    return f"δ = {run['delta']:g}, K = {run['max_reuse']}" if run["max_reuse"] else "no reuse"


def _correlation(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['value']:+.2f} ({low:+.2f} to {high:+.2f})"


def _gained(way: dict[str, Any], equal: dict[str, Any]) -> str:
    low, high = way["beside_equal"]
    apart = f" ({low:+.4f} to {high:+.4f})" if way is not equal else ""
    return f"{way['excess']:.4f}{apart}"


def _range(ends: Sequence[float]) -> str:
    low, high = ends
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _mean(value: float, interval: Sequence[float], digits: int) -> str:
    low, high = interval
    return f"{value:.{digits}f} ± {(high - low) / 2:.{digits}f}"
