"""The pages say what is so: names, links, keys, presets and examples are checked against the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import BaseModel

import elastic_dit
from elastic_dit.backbones import Backbone, backbones
from elastic_dit.config import PRESETS
from elastic_dit.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = sorted(page for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def read(name: str) -> str:
    return (ROOT / name).read_text()


def names_in(file: Path) -> set[str]:
    """Functions, classes, methods (`Class.method`) and variables of a Python file."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.FunctionDef):
                yield prefix + node.name
            elif isinstance(node, ast.ClassDef):
                yield prefix + node.name
                yield from walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign):
                yield from (prefix + target.id for target in node.targets if isinstance(target, ast.Name))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield prefix + node.target.id

    return set(walk(ast.parse(file.read_text()).body, ""))


def rows_of(page: str) -> list[list[str]]:
    """The cells of every table row, without headings and rules."""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in page.splitlines() if line[:1] == "|"]
    return [cells for cells in rows if not set("".join(cells)) <= set("-: ")]


def anchors_of(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = HEADING.findall(FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# equations.md


def references() -> list[tuple[str, str]]:
    """(file, name) of every `path::name` link of the page."""
    return [
        (target, text.strip("`").partition("::")[2])
        for text, target in LINK.findall(read("docs/equations.md"))
        if "::" in text
    ]


@pytest.mark.parametrize(("target", "name"), references())
def test_every_name_in_equations_exists(target: str, name: str) -> None:
    file = ROOT / "docs" / target
    assert file.is_file(), f"no file {target}"
    assert name in names_in(file), f"{target} has no {name}"


def test_every_equation_has_code_and_a_test() -> None:
    rows = {cells[0]: cells for cells in rows_of(read("docs/equations.md"))}
    for equation in [*(f"Eq. {number}" for number in range(1, 20)), "Algorithm 1"]:
        _, _, code, tests = rows[equation]
        assert "../src/elastic_dit/" in code, equation
        assert all("::test_" in text for text, _ in LINK.findall(tests)), equation
        assert LINK.search(tests), equation


def test_link_texts_name_their_targets() -> None:
    for text, target in LINK.findall(read("docs/equations.md")):
        if "::" in text:
            assert target.endswith("/" + text.strip("`").partition("::")[0])


def test_the_equation_is_named_in_the_file_that_computes_it() -> None:
    """Someone who looks for "Eq. 13" in `core/` finds it."""
    for cells in rows_of(read("docs/equations.md")):
        if not cells[0].startswith("Eq. "):
            continue
        number = int(cells[0].removeprefix("Eq. "))
        files = {ROOT / "docs" / target for _, target in LINK.findall(cells[2]) if "/core/" in target}
        for file in files:
            text = file.read_text()
            spans = [(int(a), int(b or a)) for a, b in re.findall(r"(?:Eq\. |, )(\d+)(?:-(\d+))?", text)]
            assert any(low <= number <= high for low, high in spans), f"{file.name} does not name Eq. {number}"


def test_presets_on_the_page_are_the_codes() -> None:
    rows = [cells for cells in rows_of(read("docs/equations.md")) if cells[0].strip("`") in PRESETS]
    assert {cells[0].strip("`") for cells in rows} == set(PRESETS)
    for name, *values in rows:
        keys = ("rho_g", "rho_w", "delta", "max_reuse")
        assert [float(value) for value in values] == [PRESETS[name.strip("`")][key] for key in keys]


# Links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page: Path) -> None:
    for text, target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"[{text}]({target})"
        if anchor and file.suffix == ".md":
            assert anchor in anchors_of(file), f"[{text}]({target}): no such heading"


# training.md


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a config, dotted; those of optional sections too."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for choice in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(choice, type) and issubclass(choice, BaseModel):
                yield from keys_of(choice, f"{prefix}{name}.")


def documented_keys() -> set[str]:
    section = read("docs/training.md").partition("\n## Keys\n")[2].partition("\n## ")[0]
    return {cells[0].strip("`") for cells in rows_of(section) if cells[0].startswith("`")}


def test_documented_keys_are_those_of_the_config() -> None:
    known = set(keys_of(TrainConfig))
    assert documented_keys() <= known
    left_out = {key for key in known - documented_keys() if not key.startswith("elastic.")}
    assert not left_out


def yaml_blocks() -> list[dict[str, Any]]:
    return [yaml.safe_load(body) for kind, body in FENCE.findall(read("docs/training.md")) if kind == "yaml"]


@pytest.mark.parametrize("values", yaml_blocks(), ids=lambda values: Path(values["output"]).name)
def test_configs_on_the_page_are_valid(values: dict[str, Any]) -> None:
    TrainConfig.model_validate(values)


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_configs_in_the_repository_are_valid(file: Path) -> None:
    TrainConfig.load(file)


def test_logged_names_are_the_trainers() -> None:
    """Each name in the log table is a string somewhere in training or the objective."""
    source = "".join(file.read_text() for file in (ROOT / "src/elastic_dit/training").glob("*.py"))
    source += read("src/elastic_dit/core/objective.py")
    section = read("docs/training.md").partition("| in the log |")[2].partition("\n## ")[0]
    names = re.findall(r"`([^`]+)`", "\n".join(line.split("|")[1] for line in section.splitlines()[2:] if "|" in line))
    assert len(names) > 10
    for name in names:
        assert name.rstrip("*") in source, name


# CONTRIBUTING.md


@pytest.fixture
def example() -> Iterator[Backbone]:
    """The backbone of the example, registered while the test runs."""
    known = set(backbones)
    marked = read("CONTRIBUTING.md").partition("<!-- example: backbone -->")[2]
    ((_, source),) = FENCE.findall(marked)[:1]
    exec(compile(source, "CONTRIBUTING.md", "exec"), {})
    (added,) = set(backbones) - known
    yield backbones[added]
    backbones._entries.pop(added)


@torch.no_grad()
def test_the_example_backbone_works(example: Backbone) -> None:
    assert example.tiny is not None
    torch.manual_seed(0)
    transformer, inputs = example.tiny()
    dense = transformer(**inputs(batch=3))[0]
    elastic = elastic_dit.elasticize(transformer)
    assert elastic.backbone is example
    assert torch.equal(transformer(**inputs(batch=3))[0], dense)

    skipping = [[[True, False, True]] * len(elastic.routers)]
    widths = [[[1.0, 1.0, 0.5]] * len(elastic.routers)]
    elastic.force(elastic_dit.Plan(skipping, width=widths))
    mixed = transformer(**inputs(batch=3))[0]
    torch.testing.assert_close(mixed[0], dense[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(mixed[1], dense[1], atol=1e-4)
    assert not torch.allclose(mixed[2], dense[2], atol=1e-4)
    elastic_dit.restore(transformer)
    assert torch.equal(transformer(**inputs(batch=3))[0], dense)


def test_pages_name_no_path_of_a_machine() -> None:
    for page in PAGES:
        assert not re.search(r"/(home|root|Users|work|tmp)/", page.read_text()), page.name
