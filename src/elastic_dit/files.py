"""Folders and files written whole or not at all."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` to fill, which takes its place at the end; kept away on an error.

    A link stays: the folder it leads to is replaced.
    """
    target = target.resolve()  # "." has no name to put another beside
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():  # there was a kill between the two renames below
        old.rename(target)
    with _filled(target.with_name(f".{target.name}.partial")) as temporary:
        yield temporary
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def replaced_files(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """A temporary folder to fill with files of these names, which take their places in `folder` at the end.

    What else `folder` holds stays; of these names, what was not written is deleted. The last one is deleted before
    the others are replaced and comes after them, so that a folder which has it is whole at any moment.
    """
    if not folder.exists():
        with replaced_folder(folder) as temporary:
            yield temporary
        return
    with _filled(folder / ".partial") as temporary:
        yield temporary
    (folder / names[-1]).unlink(missing_ok=True)
    for name in names:
        (folder / name).unlink(missing_ok=True)
        if (temporary / name).exists():
            (temporary / name).rename(folder / name)
    temporary.rmdir()


@contextmanager
def _filled(temporary: Path) -> Iterator[Path]:
    """An empty folder to fill, gone again on an error."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _share(temporary)


def _share(folder: Path) -> None:
    """Give all files the mode that a new one has: safetensors writes its own for the owner alone."""
    new = folder / ".new"
    new.touch()
    mode = new.stat().st_mode
    new.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)
