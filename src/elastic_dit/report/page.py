"""One HTML page from a demo record and its images; it needs no network and no other file."""

import base64
import io

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

from elastic_dit.records import RunRecord
from elastic_dit.report.demo_tables import compute_table, environment_table, headline, latency_table
from elastic_dit.report.plots import enlarged, heat_map
from elastic_dit.report.routes import extreme_routes
from elastic_dit.report.tables import number, percent


def demo_page(record: RunRecord, dense: list[Image.Image], elastic: list[Image.Image]) -> str:
    """The page as HTML text.

    Args:
        record: of kind `demo`.
        dense: the dense images, one a prompt.
        elastic: the elastic images, one a prompt.
    """
    cards = [
        {
            "prompt": row["prompt"],
            "dense": data_uri(_png(enlarged(a))),
            "elastic": data_uri(_png(enlarged(b))),
            "share": row["flops_share"],
            "percent": percent(row["flops_share"]),
            "psnr": "equal" if row["psnr"] is None else number(row["psnr"], ".1f") + " dB",
        }
        for row, a, b in zip(record.results["prompts"], dense, elastic, strict=True)
    ]
    return template("demo.html.j2").render(
        record=record,
        headline=headline(record),
        cards=cards,
        heat_map=data_uri(heat_map(record)),
        latency=latency_table(record),
        compute=compute_table(record),
        environment=environment_table(record),
        branch=extreme_routes(record)[0].branch,
        tau=record.config["elastic"]["tau"],
    )


def template(name: str) -> Template:
    """A template of this package; a name it lacks is an error."""
    environment = Environment(
        loader=PackageLoader("elastic_dit.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(name)


def data_uri(png: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()
