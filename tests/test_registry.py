"""Named things: found by discovery, and an unknown name gets the nearest known one."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from elastic_dit.backbones import backbone_of, backbones
from elastic_dit.errors import BackboneError, UnknownNameError
from elastic_dit.registry import Registry


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[int]]:
    """A registry over a package of two files."""
    package = tmp_path / "shapes_to_find"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from elastic_dit.registry import Registry\nshapes = Registry('shape', 'shapes_to_find')\n"
    )
    (package / "square.py").write_text("from shapes_to_find import shapes\nshapes.add('square', 4)\n")
    (package / "line.py").write_text("from shapes_to_find import shapes\nSIDES = shapes.register('line')(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import shapes_to_find  # type: ignore[import-not-found]

    yield shapes_to_find.shapes
    for name in [name for name in sys.modules if name.startswith("shapes_to_find")]:
        del sys.modules[name]


def test_a_file_is_an_entry(shapes: Registry[int]) -> None:
    assert list(shapes) == ["line", "square"]
    assert (shapes["square"], len(shapes), shapes.values()) == (4, 2, [1, 4])


def test_unknown_name(shapes: Registry[int]) -> None:
    with pytest.raises(UnknownNameError) as caught:
        shapes["squire"]
    assert str(caught.value) == "unknown shape 'squire'; known: line, square. Did you mean 'square'?"
    assert isinstance(caught.value, KeyError)


def test_nothing_near_no_guess(shapes: Registry[int]) -> None:
    with pytest.raises(UnknownNameError) as caught:
        shapes["xyz"]
    assert "Did you mean" not in str(caught.value)


def test_backbones_are_found() -> None:
    assert {"flux", "qwen-image", "sd3", "wan"} <= set(backbones)
    with pytest.raises(UnknownNameError, match="Did you mean 'flux'"):
        backbones["fluxx"]


def test_declared_classes_belong_to_one_backbone() -> None:
    names = [name for backbone in backbones.values() for name in backbone.transformers]
    assert len(names) == len(set(names))
    for backbone in backbones.values():
        assert backbones[backbone.name] is backbone


def test_a_subclass_has_its_parents_backbone() -> None:
    from diffusers import FluxTransformer2DModel

    class Mine(FluxTransformer2DModel):
        pass

    assert backbone_of(Mine.__new__(Mine)).name == "flux"


def test_a_declaration_that_does_not_hold() -> None:
    from torch import nn

    class FluxTransformer2DModel(nn.Module):
        pass

    other = FluxTransformer2DModel()
    with pytest.raises(BackboneError, match="has no 'transformer_blocks', which backbone 'flux' declares"):
        backbone_of(other).sites(other)
