"""The command line in this process: what it returned, printed and complained of."""

from typing import NamedTuple, Protocol


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


class Run(Protocol):
    def __call__(self, *arguments: object) -> Outcome: ...


def assert_refused(outcome: Outcome, *words: str) -> None:
    """Exit code 2 and one line on stderr that has the words."""
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("elastic-dit: ")
    assert outcome.err.count("\n") == 1
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err
