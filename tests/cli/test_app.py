import errno
import io
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import elastic_dit
from elastic_dit.cli.app import main
from shell import Run, assert_refused

COMMANDS = [
    (),
    ("demo",),
    ("study",),
    ("study", "routes"),
    ("generate",),
    ("train",),
    ("data",),
    ("data", "prepare"),
    ("info",),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(run: Run, command: tuple[str, ...]) -> None:
    for flag in ("--help", "-h"):
        outcome = run(*command, flag)
        assert outcome.code == 0
        assert "Usage: elastic-dit" in outcome.out
        assert outcome.err == ""


def test_help_names_every_command(run: Run) -> None:
    assert all(name in run("--help").out for name in ("demo", "generate", "train", "data", "info"))
    assert run().out == run("--help").out
    assert "prepare" in run("data").out


def test_help_says_what_happens_by_default(run: Run) -> None:
    text = " ".join(run("demo", "--help").out.replace("│", " ").split())
    assert "[default: (the shipped model)]" in text
    assert "[default: 28]" in text


def test_version(run: Run) -> None:
    assert run("--version").out == f"elastic-dit {elastic_dit.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("demmo",), ("demmo",)),
        (("demo", "--stepz", "3"), ("--stepz",)),
        (("demo", "--steps", "many"), ("--steps",)),
        (("demo", "--repeats", "0"), ("--repeats", "1")),
        (("generate",), ("PROMPT",)),
        (("train",), ("CONFIG",)),
        (("data", "unprepare"), ("unprepare",)),
        (("data", "prepare", "somewhere", "--size", "3"), ("--size", "16")),
    ],
)
def test_bad_usage_is_one_line(run: Run, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_refused(run(*arguments), *words)


def test_ctrl_c_exits_130_and_says_nothing(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import elastic_dit.bench.compare
    import elastic_dit.report.plots  # noqa: F401  an interrupt inside an import is another error

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    over = threading.Event()

    def interrupt() -> None:
        while not over.wait(1.5):  # one that falls into a destructor is lost: again, as a person would
            signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    options = ["--model", str(pair[0]), "--adapter", str(pair[1]), "--output", str(tmp_path), "--steps", "100000"]
    try:
        code = main(["demo", *options])
    finally:
        over.set()
    assert code == 130
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a write to an open file fails, the system names no file."""
    monkeypatch.setattr("elastic_dit.cli.app.app", lambda *_, **__: failing(OSError(errno.ENOSPC, "No space left")))
    outcome = run("info")
    assert (outcome.code, outcome.err) == (1, "elastic-dit: No space left\n")


def test_a_mistake_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elastic_dit.cli.app.app", lambda *_, **__: failing(io.UnsupportedOperation("not readable")))
    with pytest.raises(io.UnsupportedOperation):
        run("info")


def failing(error: Exception) -> None:
    raise error


def test_the_process_exits_with_the_code_main_returns() -> None:
    code = "import sys; from elastic_dit.cli.app import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "info", "no/such/place"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no/such/place" in done.stderr


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("yaml", ("train", "x.yaml"), "elastic-dit[train]"),
        ("peft", ("train", "x.yaml"), "elastic-dit[train]"),
        ("matplotlib", ("demo",), "elastic-dit[report]"),
    ],
)
def test_a_missing_package_names_its_extra(
    run: Run, monkeypatch: pytest.MonkeyPatch, missing: str, arguments: tuple[str, ...], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # what import does where there is none
    assert_refused(run(*arguments), missing, extra)


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from elastic_dit.cli.app import main; main(['--help']); main(['train', '--help']); "
        "main(['study', 'routes', '--help']); print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout.splitlines()[-1] == "[]"
