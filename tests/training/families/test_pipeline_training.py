"""The whole way on saved toy pipelines: encode, train elastic, sample, save an adapter, load it on the base."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from PIL import Image

import elastic_dit
from elastic_dit.training.config import TrainConfig
from elastic_dit.training.loop import Trainer

SIZE = 32


def values_of(pipeline: Any, images: list[Image.Image], folder: Path) -> dict[str, Any]:
    """The keys of a tiny elastic run, in a folder of its own."""
    data = folder / "data"
    data.mkdir()
    pipeline.save_pretrained(folder / "base")
    for image, prompt in zip(images, ["a red fox", "two cats on a table"], strict=True):
        image.save(data / f"{prompt}.png")
        (data / f"{prompt}.txt").write_text(prompt)
    return {
        "output": folder / "run",
        "model": str(folder / "base"),
        "elastic": {"rho_g": 0.6, "rho_w": 0.65},
        "data": {"source": "folder", "path": str(data), "resolution": SIZE, "cache": folder / "cache"},
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0},
        "importance_batches": 1,
        "steps": 2,
        "batch_size": 2,
    }


@pytest.mark.parametrize(("name", "trainable"), [("flux", "full"), ("qwen_image", "lora")])
def test_a_toy_pipeline_trains_and_its_adapter_loads(
    request: pytest.FixtureRequest, images: list[Image.Image], tmp_path: Path, name: str, trainable: str
) -> None:
    pipeline: Any = request.getfixturevalue(name)
    values = values_of(pipeline, images, tmp_path)
    base, output = values["model"], values["output"]
    sampled = {"log_every": 1, "sample_every": 2, "sample_prompts": ["a red fox"]}
    config = TrainConfig.model_validate(values | {"trainable": trainable} | sampled)
    adapter = Trainer(config, quiet=True).run()
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2]
    assert all(0 < line["loss"] < 100 for line in log)
    assert len(list((output / "samples").glob("*.png"))) == 1

    fresh = type(pipeline).from_pretrained(base)
    fresh.set_progress_bar_config(disable=True)

    def image() -> torch.Tensor:
        seeded = torch.Generator().manual_seed(0)
        run = {"height": SIZE, "width": SIZE, "num_inference_steps": 2, "output_type": "pt"}
        return fresh(prompt="a red fox", generator=seeded, **run).images

    dense = image()
    elastic_dit.load(fresh, adapter)
    trained = image()
    assert trained.isfinite().all()
    assert not torch.equal(trained, dense)
    elastic_dit.restore(fresh)
    assert torch.equal(image(), dense)


@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_qwen_image_resumes_exactly(qwen_image: Any, images: list[Image.Image], tmp_path: Path, trainable: str):
    """Although some of its layers never have a gradient: the model throws away the last block's text."""
    values = values_of(qwen_image, images, tmp_path) | {"trainable": trainable, "steps": 4}
    config = TrainConfig.model_validate(values)
    trainer = Trainer(config, quiet=True)
    batches = trainer.batches.from_step(0)
    losses = [trainer._train_step(batches)["loss"] for _ in range(2)]
    trainer.save_checkpoint()
    losses += [trainer._train_step(batches)["loss"] for _ in range(2)]

    resumed = Trainer(config, quiet=True)
    assert resumed.step == 2
    batches = resumed.batches.from_step(resumed.step)
    assert [resumed._train_step(batches)["loss"] for _ in range(2)] == losses[2:]
    for (name, one), other in zip(trainer.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["flux", "qwen_image"])
@pytest.mark.parametrize("changes", [{"elastic": None}, {}, {"trainable": "lora"}], ids=["dense", "elastic", "lora"])
@pytest.mark.usefixtures("one_rank")
def test_all_that_learns_has_a_gradient(
    request: pytest.FixtureRequest, images: list[Image.Image], tmp_path: Path, name: str, changes: dict[str, Any]
):
    """Or else DDP stops at the second forward."""
    values = values_of(request.getfixturevalue(name), images, tmp_path)
    trainer = Trainer(TrainConfig.model_validate(values | changes), quiet=True)
    trainer.model = torch.nn.parallel.DistributedDataParallel(trainer.model)
    batches = trainer.batches.from_step(0)
    for _ in range(2):
        trainer._train_step(batches)
    assert all(parameter in trainer.optimizer.state for parameter in trainer.parameters)
