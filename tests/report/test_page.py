import html
import re
from html.parser import HTMLParser

import pytest

from elastic_dit.bench.compare import Comparison
from elastic_dit.report.demo_tables import compute_table, environment_table, headline, latency_table
from elastic_dit.report.page import demo_page


@pytest.fixture(scope="module")
def page(reread: Comparison) -> str:
    return demo_page(reread.record, reread.dense, reread.elastic)


class Reader(HTMLParser):
    """Collects table rows and every address the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self._cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


def test_the_page_needs_nothing_else(page: str) -> None:
    reader = Reader()
    reader.feed(page)
    assert len(reader.addresses) == 2 * 3 + 1  # dense and elastic a prompt, and the heat map
    assert all(address.startswith("data:image/png;base64,") for address in reader.addresses)
    assert not reader.tags & {"script", "link", "iframe"}
    assert not re.search(r"https?://|@import|url\(", page)


def test_the_tables_are_the_records(page: str, reread: Comparison) -> None:
    reader = Reader()
    reader.feed(page)
    for table in (latency_table, compute_table, environment_table):
        for row in table(reread.record).rows:
            assert list(row) in reader.rows
    text = html.unescape(page)
    assert all(f"<strong>{value}</strong><span>{label}</span>" in text for value, label in headline(reread.record))


def test_prompts_are_text_not_markup(page: str) -> None:
    assert "a <b>bold</b>" not in page
    assert "a &lt;b&gt;bold&lt;/b&gt; &amp; crowded scene" in page


def test_each_prompt_has_its_bar(page: str, reread: Comparison) -> None:
    widths = re.findall(r'class="fill" style="width: ([\d.]+)%"', page)
    assert widths == [f"{100 * row['flops_share']:.1f}" for row in reread.record.results["prompts"]]
