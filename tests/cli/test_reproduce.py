from pathlib import Path

import pytest

import elastic_dit
from elastic_dit.checkpoint import read
from elastic_dit.cli import stages
from elastic_dit.cli.stages import Stage, Stages, run_stage
from elastic_dit.errors import ConfigError, TrainingError, UnknownNameError
from elastic_dit.models import shipped_adapter
from elastic_dit.models.loading import load_pipeline
from elastic_dit.models.weights import shipped_folder
from shell import Run, assert_refused

ROOT = Path(__file__).parents[2]
SPRITES = ROOT / "tests" / "data" / "sprites"


def stages_file(folder: Path, text: str) -> Path:
    file = folder / "stages.yaml"
    file.write_text(text)
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return stages_file(
        tmp_path,
        f"""
stages:
  data:
    about: eight scenes
    run: data prepare {tmp_path}/data --sources {SPRITES} --size 16 --scenes 8 --variants 1
    makes: {tmp_path}/data/test/000000.tar
  more:
    about: the same again
    run: data prepare {tmp_path}/more --sources {SPRITES} --size 16 --scenes 8 --variants 1
    makes: {tmp_path}/more/test/000000.tar
    needs: [data]
  other:
    about: what nobody needs
    run: data prepare {tmp_path}/other --sources {SPRITES}
    makes: {tmp_path}/other/test/000000.tar
""",
    )


def test_it_makes_what_is_missing_and_only_that(run: Run, file: Path, tmp_path: Path) -> None:
    listed = run("reproduce", "--file", file)
    assert listed.code == 0 and "eight scenes" in listed.out and "done" not in listed.out
    assert run("reproduce", "more", "--file", file).code == 0
    assert (tmp_path / "data" / "test" / "000000.tar").is_file() and (
        tmp_path / "more" / "test" / "000000.tar"
    ).is_file()
    assert not (tmp_path / "other").exists()
    time = (tmp_path / "data" / "test" / "000000.tar").stat().st_mtime_ns
    again = run("reproduce", "more", "--file", file)
    assert again.code == 0 and "nothing to run" in again.err
    assert (tmp_path / "data" / "test" / "000000.tar").stat().st_mtime_ns == time


def test_what_only_a_stage_that_is_done_needs_is_not_made(run: Run, file: Path, tmp_path: Path) -> None:
    (tmp_path / "more" / "test").mkdir(parents=True)
    (tmp_path / "more" / "test" / "000000.tar").touch()
    assert run("reproduce", "more", "--file", file).code == 0
    assert not (tmp_path / "data").exists()


def test_models_that_ship_take_the_place_of_training(run: Run, tmp_path: Path) -> None:
    """The adapter as training left it: it loads, and neither guidance nor steps are what later stages chose."""
    text = f"""
stages:
  data: {{about: pairs, run: data prepare none, makes: {tmp_path}/none}}
  dense:
    about: a model
    run: train none
    makes: {tmp_path}/model/model_index.json
    needs: [data]
    ships: emoji-dozen-converged
  half:
    about: an adapter
    run: ablate none
    makes: {tmp_path}/half/elastic_config.json
    needs: [dense]
    ships: emoji-dozen-converged-half
"""
    outcome = run("reproduce", "half", "--shipped", "--file", stages_file(tmp_path, text))
    assert outcome.code == 0, outcome.err
    assert "emoji-dozen-converged-half" in outcome.err and "nothing to run" in outcome.err
    shipped = read(shipped_adapter("emoji-dozen-converged-half"))
    assert shipped.config.step_intervals and shipped.config.max_guidance_reuse
    pipe = load_pipeline(tmp_path / "model")
    config = elastic_dit.load(pipe, tmp_path / "half").config
    assert config.step_intervals is None and config.max_guidance_reuse == 0 and config.step_share == 1
    assert config.route == shipped.config.route and config.route is not None


def test_records_are_gathered_and_adapters_are_not(run: Run, tmp_path: Path) -> None:
    """The stages of the project, their files there already: nothing is made, and one page shows the records."""
    known = Stages.read(ROOT / "reproduce.yaml").stages
    made = [ROOT / "docs" / stage.makes for stage in known.values() if stage.recorded]
    assert len(made) > 20
    record = next(file for file in made if file.name == "converted-8.json")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "elastic_config.json").write_text("{}")
    text = f"""
stages:
  trained: {{about: an adapter, run: prune data, makes: {tmp_path}/adapter/elastic_config.json}}
  judged: {{about: its scores, run: judge images data --json {record}, makes: {record}, needs: [trained]}}
"""
    file, page = stages_file(tmp_path, text), tmp_path / "page.html"
    outcome = run("reproduce", "judged", "--file", file, "--page", page)
    assert outcome.code == 0, outcome.err
    whole = page.read_text()
    assert "judged: its scores" in whole

    (tmp_path / "adapter" / "elastic_config.json").unlink()  # what is committed needs no stage to be done
    outcome = run("reproduce", "--records", record.parent, "--file", file, "--page", page)
    assert outcome.code == 0 and page.read_text() == whole
    page.unlink()
    outcome = run("reproduce", "--records", tmp_path, "--file", file, "--page", page)
    assert "no record" in outcome.out and not page.exists()


def test_a_stage_that_fails_stops_it(run: Run, tmp_path: Path) -> None:
    text = f"stages: {{bad: {{about: x, run: data prepare {tmp_path} --size 3, makes: {tmp_path}/y}}}}"
    outcome = run("reproduce", "all", "--file", stages_file(tmp_path, text))
    assert outcome.code == 1
    assert "'bad' ended with exit code 2" in outcome.err and "Run again" in outcome.err


def test_a_stage_that_is_killed_says_so(tmp_path: Path) -> None:
    """As by the kernel, when memory runs out: that is no Ctrl-C."""
    stage = Stage(about="x", run="data prepare", makes=tmp_path / "y")
    for signal_number, raised in ((9, TrainingError), (2, KeyboardInterrupt)):
        killed = f"import os, signal; signal.signal(2, signal.SIG_DFL); os.kill(os.getpid(), {signal_number})"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stages, "_PROGRAM", "this")
            patch.syspath_prepend(tmp_path)
            (tmp_path / "this.py").write_text(killed)
            patch.setenv("PYTHONPATH", str(tmp_path))
            patch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # both files are of one size, perhaps of one second
            with pytest.raises(raised):
                run_stage("bad", stage, 1)


def test_bad_files(run: Run, file: Path, tmp_path: Path) -> None:
    assert_refused(run("reproduce", "--file", tmp_path / "none.yaml"), "none.yaml")
    assert_refused(run("reproduce", "mroe", "--file", file), "mroe", "more")
    with pytest.raises(ConfigError, match="not above it"):
        Stages.read(stages_file(tmp_path, "stages: {a: {about: x, run: info, makes: y, needs: [b]}}"))
    with pytest.raises(ConfigError, match="unknown key"):
        Stages.read(stages_file(tmp_path, "stages: {a: {about: x, run: info, makes: y, cost: 3}}"))


def test_our_own_stages() -> None:
    """Every stage is a command of ours, and every config that it names exists."""
    ours = Stages.read(ROOT / "reproduce.yaml")
    assert ours.needed(list(ours.stages)) == list(ours.stages)
    with pytest.raises(UnknownNameError):
        ours.needed(["none"])
    for stage in ours.stages.values():
        words = stage.run.split()
        commands = {
            "data",
            "train",
            "prune",
            "forecast",
            "allocate",
            "select-steps",
            "evaluate",
            "ablate",
            "judge",
            "study",
            "calibrate",
        }
        assert words[0] in commands
        for word in words:
            assert not word.startswith("configs/") or (ROOT / word).is_file(), word
        assert stage.ships is None or shipped_folder(stage.ships).is_dir()


def test_our_own_stages_need_what_they_read() -> None:
    """Data and dense models, by name: below a stage that is done nothing else is made."""
    ours = Stages.read(ROOT / "reproduce.yaml").stages
    for name, stage in ours.items():
        known = {need: ours[need].makes for need in stage.needs}
        for word in stage.run.split():
            if (
                word.startswith("data/")
                and not word.startswith("data/cache")
                and "data prepare " + word not in stage.run
            ):
                folder = Path(*Path(word).parts[:2])
                assert any(made.is_relative_to(folder) for made in known.values()), (name, word)
            if word.startswith("runs/") and word.endswith("/model"):
                assert Path(word) / "model_index.json" in known.values(), (name, word)


def test_with_what_ships_these_train_nothing() -> None:
    """As docs/results.md says."""
    ours = Stages.read(ROOT / "reproduce.yaml")
    there = {name: stage.model_copy(update={"makes": ROOT / "reproduce.yaml"}) for name, stage in ours.stages.items()}
    stages = {name: there[name] if stage.ships else stage for name, stage in ours.stages.items()}
    named = (
        "few-4",
        "converged-few-4",
        "guided-28",
        "converged-28",
        "converged-caches-4",
        "converged-caches-8",
        "converged-caches-28",
        "converged-teacache-8",
        "dozen-caches-4",
        "dozen-caches-8",
    )
    for name in (*named, "routes", "cache"):
        missing = Stages(stages=stages).needed([name], missing=True)
        assert not [need for need in missing if stages[need].run.split()[0] in ("train", "ablate")], name
