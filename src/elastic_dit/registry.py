"""Named things found by discovery: a new file in a package is a new entry."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from elastic_dit.errors import UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to entries of one kind; the modules of `package` are imported on first use."""

    def __init__(self, kind: str, package: str) -> None:
        self._kind, self._package = kind, package
        self._entries: dict[str, T] = {}
        self._discovered = False

    def add(self, name: str, entry: T) -> T:
        """Register an entry; a name is taken once."""
        assert name not in self._entries, f"{self._kind} {name!r} is registered twice"
        self._entries[name] = entry
        return entry

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form of `add`."""
        return lambda entry: self.add(name, entry)

    def __getitem__(self, name: str) -> T:
        """The entry, or `UnknownNameError` with the names there are."""
        entries = self._all()
        if name not in entries:
            raise UnknownNameError(self._kind, name, entries)
        return entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._all()))

    def __len__(self) -> int:
        return len(self._all())

    def values(self) -> list[T]:
        """Every entry, by name."""
        return [self._all()[name] for name in self]

    def _all(self) -> dict[str, T]:
        if not self._discovered:
            self._discovered = True
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
        return self._entries
