import json
from pathlib import Path

import elastic_dit
from elastic_dit.backbones import backbones
from elastic_dit.models.loading import load_pipeline
from shell import Run, assert_refused


def test_the_installation(run: Run) -> None:
    text = run("info").out
    assert all(name in text for name in [*backbones, *elastic_dit.PRESETS, "EmojiFluxPipeline", "torch", "commit"])


def test_a_model(run: Run, pair: tuple[Path, Path]) -> None:
    outcome = run("info", pair[0])
    assert outcome.code == 0
    size = sum(p.numel() for p in load_pipeline(pair[0]).transformer.parameters())
    facts = dict(line.split(maxsplit=1) for line in outcome.out.splitlines() if len(line.split()) > 1)
    assert facts["backbone"].strip() == "flux"
    assert facts["parameters"].strip() == f"{size / 1e6:.2f} M"
    assert facts["single_transformer_blocks"].startswith("2 with")
    assert "proj_mlp, proj_out" in outcome.out


def test_a_model_is_described_without_its_weights(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("model_index.json", "transformer/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((pair[0] / name).read_text())
    assert run("info", tmp_path).out == run("info", pair[0]).out


def test_an_adapter(run: Run, pair: tuple[Path, Path]) -> None:
    outcome = run("info", pair[1])
    card = json.loads((pair[1] / "elastic_config.json").read_text())
    assert card["base_fingerprint"][:12] in outcome.out
    facts = {line.split()[0]: line.split()[-1] for line in outcome.out.splitlines() if line.strip()}
    assert facts["router_hidden_size"] == "8"
    assert facts["max_reuse"] == "3"
    assert facts["routers"] == "MB"


def test_bad_input(run: Run, tmp_path: Path) -> None:
    assert_refused(run("info", tmp_path), "model_index.json", "elastic_config.json")
    assert_refused(run("info", "nothing-here"), "nothing-here", "owner/name")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert_refused(run("info", tmp_path), "StableDiffusionPipeline", "transformer")
    (tmp_path / "model_index.json").write_text("{")
    assert_refused(run("info", tmp_path), "JSON")
