"""One HTML page from records of quality: `evaluate`, `ablate`, `judge`, `study`; it needs no network."""

from collections.abc import Sequence

from elastic_dit.records import RunRecord
from elastic_dit.report.ablation_tables import ablation_plot, ablation_tables
from elastic_dit.report.bench_page import Figure
from elastic_dit.report.evaluation_plots import loss_plot
from elastic_dit.report.evaluation_tables import loss_tables
from elastic_dit.report.judge_plots import contest_plot
from elastic_dit.report.judge_tables import contest_tables, truth_tables
from elastic_dit.report.page import template
from elastic_dit.report.study_plots import study_plot
from elastic_dit.report.study_tables import STUDIES
from elastic_dit.report.tables import Table, where

KINDS = {
    "evaluate": loss_tables,
    "ablation": ablation_tables,
    "judge": contest_tables,
    "judge-train": truth_tables,
} | STUDIES
"""The records that the page can show, and their tables."""
STUDY_CAPTIONS = {
    "study-blocks": "How much each block matters, by noise level.",
    "study-routes": "What the routers decide, and whether compute follows difficulty.",
    "study-cache": "Quality against compute over delta, over K, and without reuse; bars are 95% intervals.",
    "study-allocation": "What could be gained by spending unevenly over noise levels, prompts and samples.",
}


def results_page(records: Sequence[tuple[str, RunRecord]]) -> str:
    """The page as HTML text.

    Args:
        records: titles, and records of one of `KINDS`, in the order of the page.
    """
    sections = [
        {"title": title, "tables": KINDS[record.kind](record), "figures": _figures(record)} for title, record in records
    ]
    rows = [(title, f"{where(record)}, {record.environment.time}", record.command) for title, record in records]
    environment = Table("Environment", ("", "where", "command"), rows, words=True)
    return template("results.html.j2").render(sections=sections, environment=environment)


def _figures(record: RunRecord) -> list[Figure]:
    if record.kind == "judge":
        return [Figure("contest", contest_plot(record), "Quality against compute; bars are 95% intervals.")]
    if record.kind == "ablation":
        return [Figure("recipes", ablation_plot(record), "Flow loss over dense, a dot for each seed.", narrow=True)]
    if record.kind == "evaluate":
        return [Figure("loss", loss_plot(record), "Flow loss over dense against compute.", narrow=True)]
    if record.kind in STUDIES:
        return [Figure(record.kind, study_plot(record), STUDY_CAPTIONS[record.kind])]
    return []
