"""The tables of a demo record, as text: the terminal and the page show the same."""

from typing import Any

from elastic_dit.records import RunRecord
from elastic_dit.report.tables import NONE, Table, number, percent, seconds, times


def latency_table(record: RunRecord) -> Table:
    """Time per step and end to end, dense against elastic, at each batch size."""
    rows: list[tuple[str, ...]] = []
    for row in record.results["latency"]:
        where = f"batch {row['batch']}"
        for what, label in (("step", "step"), ("run", "image")):
            dense, elastic = row[f"dense_{what}_seconds"], row[f"elastic_{what}_seconds"]
            rows.append((f"{label}, {where}", seconds(dense), seconds(elastic), times(row[f"{what}_speedup"])))
    frozen = record.results["frozen"]
    rows.append((f"step, batch {len(record.results['prompts'])}, frozen", NONE, NONE, times(frozen["step_speedup"])))
    return Table(
        "Time",
        ("", "dense", "elastic", "speed-up"),
        rows,
        "Median (lowest–highest). Step: one denoising step, the transformer alone, all guidance passes. Image: from "
        "prompts to images, the whole batch. Dense and elastic runs take turns; a speed-up compares two neighbours. "
        "Frozen: one route for all prompts, the mean of theirs, without routers.",
    )


def compute_table(record: RunRecord) -> Table:
    """What was spent and how close the images are, for each prompt and for all."""
    rows = [(f"“{row['prompt']}”", *_shares(row)) for row in record.results["prompts"]]
    rows.append(("all prompts", *_shares(record.results["compute"] | record.results["fidelity"])))
    frozen = record.results["frozen"]
    rows.append(("all prompts, frozen", *_shares(frozen["compute"] | frozen["fidelity"])))
    return Table(
        "Compute and fidelity to the dense images",
        ("", "FLOPs", "open", "reused", "width", "PSNR", "SSIM"),
        rows,
        "FLOPs: blocks and routers, as a share of the dense blocks'. Open: not skipped. Reused: share of the open "
        "blocks that added a stored residual. Width: mean MLP width of the blocks that ran. PSNR in dB.",
    )


def environment_table(record: RunRecord) -> Table:
    """Where and with what it was measured."""
    here, config, model = record.environment, record.config, record.results["model"]
    blocks = " + ".join(f"{number} {path}" for path, number in model["blocks"].items())
    size = f"{model['parameters'] / 1e6:.1f} M parameters, routers {model['router_parameters'] / 1e6:.2f} M"
    rows = [
        (
            "device",
            f"{here.device}, {here.threads} thread{'s' * (here.threads > 1)}, {config.get('dtype') or 'float32'}",
        ),
        ("model", f"{model['transformer']}, {blocks}; {size}"),
        ("sampling", f"{config['steps']} steps, guidance {config['guidance']}, seed {config['seed']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in here.versions.items())),
        ("commit", here.commit),
        ("time", here.time),
        ("command", record.command),
    ]
    return Table("Environment", ("", ""), rows)


def headline(record: RunRecord) -> list[tuple[str, str]]:
    """The few numbers that matter, each with its label."""
    results = record.results
    latency = results["latency"]
    numbers = [(f"{row['step_speedup']['median']:.2f}×", f"speed per step, batch {row['batch']}") for row in latency]
    numbers.append((percent(results["compute"]["flops_share"]), "of the dense FLOPs"))
    psnr = results["fidelity"]["psnr"]
    numbers.append((number(psnr, ".1f") + " dB" if psnr is not None else "equal", "PSNR to the dense images"))
    return numbers


def _shares(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        percent(row["flops_share"]),
        percent(row["open_rate"]),
        percent(row["reuse_rate"]),
        number(row["mean_width"], ".2f"),
        "equal" if row["psnr"] is None else number(row["psnr"], ".1f"),
        number(row["ssim"], ".3f"),
    )
