"""A folder that is replaced whole, whatever its name leads to and whenever it ends."""

from pathlib import Path

import pytest

from elastic_dit.files import replaced_folder


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    return folder


@pytest.mark.parametrize("name", ["run", "latest", "run/.", "run/../run"])
def test_it_takes_the_place_of_the_old_one(target: Path, name: str) -> None:
    target.with_name("latest").symlink_to("run")
    with replaced_folder(target.parent / name) as folder:
        (folder / "new.txt").write_text("new")
    assert contents(target) == {"new.txt": "new"}
    assert sorted(path.name for path in target.parent.iterdir()) == ["latest", "run"]
    assert target.with_name("latest").is_symlink()


def test_the_folder_where_we_are(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(target)
    with replaced_folder(Path()) as folder:
        (folder / "new.txt").write_text("new")
    assert contents(target) == {"new.txt": "new"}


def test_after_a_kill_between_the_renames_the_old_one_is_there_again(target: Path) -> None:
    target.rename(target.with_name(".run.old"))
    with pytest.raises(OSError, match="no space"), replaced_folder(target):
        raise OSError("no space left")
    assert contents(target.parent) == {"run/old.txt": "old"}
