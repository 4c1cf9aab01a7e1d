import pytest

from elastic_dit.cli.output import ProgressBar


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with ProgressBar() as bar:
        bar.show("drawing", 1, 3)
        assert capsys.readouterr().err == ""  # it has only begun
        monkeypatch.setattr(ProgressBar, "every", 0.0)
        bar.show("drawing", 2, 3)
        bar.show("loading", 0, 0)
    assert capsys.readouterr().err == "drawing: 2 of 3\nloading\n"
