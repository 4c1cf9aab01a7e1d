"""What `elastic-dit judge` measured, as tables."""

import re
from typing import Any

from elastic_dit.records import RunRecord
from elastic_dit.report.evaluation_tables import model_name
from elastic_dit.report.tables import NONE, Table, percent, table_markdown, times, where

TASKS = {
    "single_object": "single object",
    "two_object": "two objects",
    "counting": "counting",
    "colors": "colours",
    "position": "position",
    "color_attr": "colour attribution",
    "style": "style",
}


def truth_tables(record: RunRecord) -> list[Table]:
    """Real held-out scenes: what the scores say where the truth is known."""
    truth, counts = record.results["truth"], record.results["counts"]
    rows = [(label, str(counts[task]), percent(truth["scene_eval"][task])) for task, label in _known(truth)]
    rows.append(("overall", str(sum(counts[task] for task, _ in _known(truth) if task != "style")), _overall(truth)))
    recalls = tuple(f"{name} {percent(value)}" for name, value in truth["retrieval"].items())
    note = (
        f"The detector on real scenes it was not trained on: a perfect generator would score this. Retrieval of the "
        f"same images: {', '.join(recalls)}. {where(record)}"
    )
    return [Table("SceneEval on held-out real scenes", ("task", "scenes", "right"), rows, note)]


def contest_tables(record: RunRecord) -> list[Table]:
    """Quality against compute, SceneEval by task, and methods of nearly equal compute two by two."""
    rows, config = record.results["rows"], record.config
    steps = f"{config['steps']} steps, guidance {config['guidance']:g}"
    if config.get("width"):
        steps += f", {config['width']} pixels"
    at_once = config.get("at_once")
    timed = {"speed-up": "ratio"} | ({f"of {at_once} at once": "together"} if at_once else {})
    scores = [
        (
            row_name(row),
            percent(row["cost"]["flops_share"]),
            *(_speedup(row["cost"][name]) for name in timed.values()),
            _overall(row),
            *(percent(value) for value in row["retrieval"].values()),
            f"{row['frechet']:.0f}",
            f"{row['kernel']:.1f} ± {1.96 * row['kernel_error']:.1f}",
            f"{row['psnr_db']:.1f}" if "psnr_db" in row else NONE,
        )
        for row in rows
    ]
    tasks = [(row_name(row), *(percent(row["scene_eval"][task]) for task, _ in _known(rows[0]))) for row in rows]
    if truth := record.results.get("truth"):
        tasks.append(("real scenes", *(percent(truth[task]) for task, _ in _known(rows[0]))))
    return [
        Table(
            f"{config['images']} images a row, {steps}",
            ("", "FLOPs", *timed, "SceneEval", *rows[0]["retrieval"], "FD", "KD", "PSNR (dB)"),
            scores,
            "FLOPs: counted as executed, on a few images of all tasks, as a share of the dense model's. Speed-up: of "
            f"the transformer for one image{f' and for {at_once} at once' if at_once else ''}, beside dense runs just "
            "before and after (median, lowest–highest). SceneEval: mean over six tasks, 95% interval by bootstrap over "
            f"images and runs. R@k: the image's own caption is among the k nearest of {config['captions']}. FD and KD "
            "(x 1000, 95% interval): distance to real scenes on EfficientNet-lite0's features, lower is better. PSNR: "
            "against the dense model's images.",
        ),
        Table("SceneEval by task", ("", *(label for _, label in _known(rows[0]))), tasks, where(record)),
        *differences("Beside dense", record, record.results["beside_dense"]),
        *differences("At nearly equal compute", record, record.results["pairs"]),
    ]


def _speedup(ratio: dict[str, float]) -> str:
    """Of a ratio of times."""
    return times({name: 1 / ratio[other] for name, other in _INVERSE.items()})


def judge_markdown(record: RunRecord, tables: list[Table]) -> str:
    """The tables and the command that makes them again."""
    return "\n".join([*map(table_markdown, tables), f"`{record.command}`", ""])


def row_name(row: dict[str, Any]) -> str:
    """What a row of a contest is called."""
    entry = row["entry"]
    if not entry["adapter"]:
        return entry["name"]
    runs = len(row.get("runs", ()))
    if runs > 1:
        pattern = _ASKED.sub("", entry["name"])
        recipe = re.sub(r"[-_]*(\[[^]]*\])?[*]", "", model_name(pattern))
        return f"{recipe}{entry['name'].removeprefix(pattern)} ({runs} runs)"
    return model_name(entry["adapter"]) + entry["name"].removeprefix(entry["adapter"])


_ASKED = re.compile(r"( at [0-9.]+)?(, .*)?$")
"""What a row's name says behind its folders."""
_INVERSE = {"median": "median", "min": "max", "max": "min"}


def differences(title: str, record: RunRecord, pairs: list[dict[str, Any]]) -> list[Table]:
    """Pairs of rows, the first less the second; no table where there are none."""
    if not pairs:
        return []
    names = [row_name(row) for row in record.results["rows"]]
    kernels = "kernel" in pairs[0]  # records from before it was compared have none
    cells = [
        (
            names[pair["first"]],
            names[pair["second"]],
            _signed(pair["overall"], pair["overall_interval"], 100),
            _signed(pair["recall"], pair["recall_interval"], 100),
            *([_signed(pair["kernel"], pair["kernel_interval"])] if kernels else []),
        )
        for pair in pairs
    ]
    note = (
        "First less second, run by run and image by image, with the 95% interval. SceneEval and R@5 in points: above 0 "
        "the first is better."
    )
    if kernels:
        note += " KD over the same halves of the prompts: below 0 it is."
    return [Table(title, ("first", "second", "SceneEval", "R@5", *(["KD"] if kernels else [])), cells, note)]


def _known(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(task, label) for task, label in TASKS.items() if task in row["scene_eval"]]


def _overall(row: dict[str, Any]) -> str:
    low, high = row["overall_interval"]
    return f"{100 * row['overall']:.1f} ± {50 * (high - low):.1f}%"


def _signed(value: float, interval: list[float], scale: float = 1) -> str:
    return f"{scale * value:+.1f} ({scale * interval[0]:+.1f} to {scale * interval[1]:+.1f})"
