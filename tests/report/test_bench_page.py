import html
import re
from html.parser import HTMLParser

import pytest

from elastic_dit.errors import UnknownNameError
from elastic_dit.records import RunRecord
from elastic_dit.report.bench_bars import bars
from elastic_dit.report.bench_page import bench_page, environments, headline
from elastic_dit.report.bench_tables import tables
from elastic_dit.report.bench_words import by_name


class Reader(HTMLParser):
    """Collects cells by row, headings, images and tags."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.headings: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._inside = tag if tag in ("td", "th", "h2", "h3") else ""
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("h2", "h3"):
            self.headings.append("")
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("td", "th"):
            self.rows[-1][-1] += data
        elif self._inside:
            self.headings[-1] += data


@pytest.fixture
def records(
    speed_record: RunRecord, peers_record: RunRecord, scaling_record: RunRecord, training_record: RunRecord
) -> list[RunRecord]:
    return [speed_record, peers_record, scaling_record, training_record]


def test_the_page_has_everything_and_needs_nothing(records: list[RunRecord]) -> None:
    page = bench_page(records)
    reader = Reader()
    reader.feed(page)
    made = [table for record in records for table in tables(record)]
    assert reader.headings == ["Bars", *(table.title for table in made), "Environment"]
    for table in (bars(records), *made, environments(records)):
        assert list(table.header) in reader.rows
        for row in table.rows:
            assert list(row) in reader.rows
        assert table.note in html.unescape(page)
    for value, label in headline(records):
        assert f"<strong>{value}</strong><span>{label}</span>" in html.unescape(page)
    assert len(reader.images) == 4  # two of speed, one of peers, one of scaling
    assert all(image["alt"] and str(image["src"]).startswith("data:image/png;base64,") for image in reader.images)
    assert not reader.tags & {"script", "link", "iframe", "a"}
    assert not re.search(r"https?://|@import|url\(", page)
    assert 'name="viewport"' in page


def test_headline_is_of_the_first_of_each_kind(records: list[RunRecord]) -> None:
    row = by_name(records[0].results["rows"])["skip + width + cache"]
    values = [value for value, _ in headline(records)]
    assert values[0] == f"{row['speedup']['median']:.2f}×"
    assert values[1] == f"{row['realised']['median']:.0%}"
    assert len(values) == 5
    assert headline([*records, *records]) == headline(records)


def test_a_record_of_some_rows_has_a_page(speed_record: RunRecord) -> None:
    """As `bench speed --only` writes it."""
    some = {"dense", "all open, a step late"}
    speed_record.results["rows"] = [row for row in speed_record.results["rows"] if row["name"] in some]
    del speed_record.results["timeline"]
    assert headline([speed_record]) == []
    assert "all open, a step late" in bench_page([speed_record])


def test_a_page_of_one_record(training_record: RunRecord) -> None:
    assert "<img" not in bench_page([training_record])


def test_text_is_no_markup(peers_record: RunRecord) -> None:
    peers_record.results["left_out"] = [{"name": "<b>bold</b>", "why": "a & b"}]
    page = bench_page([peers_record])
    assert "&lt;b&gt;bold&lt;/b&gt;" in page and "<b>bold" not in page


def test_an_unknown_kind_is_an_error(speed_record: RunRecord) -> None:
    with pytest.raises(UnknownNameError, match="'demo'"):
        bench_page([speed_record.model_copy(update={"kind": "demo"})])
