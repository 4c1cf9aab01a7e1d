"""The training loop on a tiny real model: it learns, resumes exactly, survives kills, and agrees across ranks."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from tests.training.conftest import config_of

import elastic_dit
from elastic_dit.conversions import load_converted
from elastic_dit.conversions.base import ROUTES
from elastic_dit.errors import CheckpointError, ConfigError, TrainingError
from elastic_dit.models import EmojiFluxPipeline
from elastic_dit.training.config import TrainConfig
from elastic_dit.training.loop import Trainer
from elastic_dit.training.state import latest_checkpoint

RUN = "import sys; from pathlib import Path; from elastic_dit.training.config import TrainConfig;" + (
    "from elastic_dit.training.loop import Trainer; Trainer(TrainConfig.load(Path(sys.argv[1])), quiet=True).run()"
)


ELASTIC = {
    "elastic": {},
    "routers that stay": {"router_steps": 0},  # they never have a gradient
    "lora": {"trainable": "lora"},
    "routers": {"trainable": "routers"},
}
CONVERSIONS = {"dydit": {"method": "dydit"}, "dense2moe": {"method": "dense2moe", "group": 2, "keep": 1}}


def log_of(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def losses_of(output: Path) -> dict[int, float]:
    return {int(line["step"]): line["loss"] for line in log_of(output) if "loss" in line}


def written(values: dict[str, Any], folder: Path, **changes: Any) -> Path:
    """A config as the YAML file that a command reads."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(json.loads(config_of(values, **changes).model_dump_json())))
    return file


def test_dense_run_learns_and_saves_a_pipeline(values: dict[str, Any]):
    config = config_of(values, steps=60, checkpoint_every=60, ema_decay=0.9, optimizer={"learning_rate": 5e-3})
    result = Trainer(config, quiet=True).run()
    losses = losses_of(config.output)
    assert len(losses) == 60
    assert sum(list(losses.values())[-10:]) < 0.8 * sum(list(losses.values())[:10])
    image = EmojiFluxPipeline.from_pretrained(result)("a dog", height=16, width=16, num_inference_steps=2).images[0]
    assert image.size == (16, 16)


def test_elastic_run_meets_its_budget_and_saves_an_adapter(elastic_values: dict[str, Any]):
    pipeline = EmojiFluxPipeline.from_size("tiny", seed=0)
    config = config_of(elastic_values, steps=80, checkpoint_every=80, ramp_steps=20)
    result = Trainer(config, quiet=True).run()
    last = log_of(config.output)[-1]
    assert last["flops/share"] < 0.7
    assert {"keep/mean_prob", "keep/open_rate", "keep/borderline", "width/mean", "flops/std"} <= last.keys()
    elastic = elastic_dit.load(pipeline, result)
    pipeline("a dog", height=16, width=16, num_inference_steps=2)
    assert elastic.trace.flops_share < 1


def test_dydit_meets_its_budget(values: dict[str, Any]):
    """From all open to the share asked for, by tokens: the tiny model has one head. The folder holds the result."""
    changes = {"conversion": {"method": "dydit", "budget": 0.85, "weight": 20.0}, "ramp_steps": 20, "ema_decay": 0.0}
    rates = {"learning_rate": 1e-3, "router_learning_rate": 0.1, "warmup_steps": 2, "schedule": "constant"}
    config = config_of(values, steps=80, checkpoint_every=80, optimizer=rates, **changes)
    trainer = Trainer(config, quiet=True)
    result = trainer.run()
    log = log_of(config.output)
    assert log[0]["flops/share"] > 0.95
    assert sum(line["flops/share"] for line in log[-10:]) / 10 == pytest.approx(0.85, abs=0.02)
    assert log[-1]["tokens/mean"] < 1
    other = EmojiFluxPipeline.from_size("tiny", seed=0)
    load_converted(other.transformer, result)
    settings = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "np"}
    trainer.trainee.transformer.eval()
    images = [
        pipe("a dog", generator=torch.Generator().manual_seed(0), **settings).images
        for pipe in (trainer.trainee.pipeline, other)
    ]
    assert (images[0] == images[1]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compile": True}, "goes with no compile"),
        ({"elastic": {"rho_g": 0.5}}, r"elastic.width_streams must be \[\]"),
        ({"elastic": {"rho_g": 0.5}, "conversion": {"method": "dense2moe"}}, "goes with no elastic"),
        ({"trainable": "lora"}, "trains all weights"),
        ({"conversion": {"method": "dydit", "heads": 3}}, "unknown key 'heads'"),
        ({"importance_batches": 0}, "importance_batches must not be 0"),
    ],
)
def test_what_a_conversion_does_not_go_with(values: dict[str, Any], changes: dict[str, Any], message: str):
    with pytest.raises((ConfigError, ValueError), match=message):
        Trainer(config_of(values | {"conversion": {"method": "dydit"}} | changes), quiet=True)


def test_dydit_and_routers_together(values: dict[str, Any], elastic_values: dict[str, Any]):
    """Routers decide which blocks run, DyDiT what runs in them; both meet their budgets, and both are in the folder."""
    elastic = elastic_values["elastic"] | {"width_streams": [], "max_reuse": 0}
    conversion = {"method": "dydit", "budget": 0.85, "weight": 20.0}
    rates = {"learning_rate": 1e-3, "router_learning_rate": 0.1, "warmup_steps": 2, "schedule": "constant"}
    changes = {"elastic": elastic, "conversion": conversion, "optimizer": rates, "ramp_steps": 20, "ema_decay": 0.0}
    config = config_of(values, steps=80, checkpoint_every=80, **changes)
    trainer = Trainer(config, quiet=True)
    result = trainer.run()
    last = log_of(config.output)[-1]
    assert last["conversion/flops/share"] == pytest.approx(0.85, abs=0.06)
    assert last["keep/open_rate"] < 0.9
    other = EmojiFluxPipeline.from_size("tiny", seed=0)
    load_converted(other.transformer, result)
    routes = elastic_dit.load(other, result / ROUTES)
    settings = {"height": 16, "width": 16, "num_inference_steps": 3, "output_type": "np"}
    trainer.trainee.transformer.eval()
    with trainer.trainee.inference():
        own = trainer.trainee.pipeline("a dog", generator=torch.Generator().manual_seed(0), **settings).images
    assert (other("a dog", generator=torch.Generator().manual_seed(0), **settings).images == own).all()
    assert routes.trace.flops_share < 1


@pytest.mark.slow
def test_one_run_learns_a_range_of_budgets(elastic_values: dict[str, Any]):
    """Each third of the batch nears its own budget, and the adapter spends by its dial."""
    elastic = elastic_values["elastic"] | {"budget_range": [0.3, 1.0], "max_reuse": 0}
    config = config_of(elastic_values, elastic=elastic, batch_size=6, steps=120, checkpoint_every=120, ramp_steps=20)
    result = Trainer(config, quiet=True).run()
    pipeline = EmojiFluxPipeline.from_size("tiny", seed=0)
    model = elastic_dit.load(pipeline, result)
    spent = []
    for budget in (0.3, 0.65, 1.0):
        model.budget = budget
        pipeline("a dog", height=16, width=16, num_inference_steps=4)
        spent.append(model.trace.flops_share)
    assert spent == sorted(spent)
    assert spent[0] < 0.6 and spent[-1] > 0.85


def test_routers_settle(elastic_values: dict[str, Any]):
    """After `router_steps` the routers stay as they are, without noise, and the backbone goes on learning."""
    elastic = elastic_values["elastic"] | {"decision_noise": 1.0}
    trainer = Trainer(config_of(elastic_values, elastic=elastic, steps=4, router_steps=2), quiet=True)
    model, batches = trainer.trainee.elastic, trainer.batches.from_step(trainer.step)
    assert model is not None
    block = next(iter(trainer.trainee.transformer.parameters()))
    noisy, routers, backbone = [], [], []
    for _ in range(4):
        trainer._train_step(batches)
        noisy.append(model._engine.learning.noisy)
        routers.append([p.detach().clone() for p in model.stack.parameters()])
        backbone.append(block.detach().clone())
    assert noisy == [True, True, False, False]
    assert not all(torch.equal(*pair) for pair in zip(routers[0], routers[1], strict=True))
    for after in routers[2:]:
        assert all(torch.equal(*pair) for pair in zip(routers[1], after, strict=True))
    assert not torch.equal(backbone[2], backbone[3])


@pytest.mark.parametrize("kind", ["dense", *ELASTIC, *CONVERSIONS])
def test_resume_is_exact(kind: str, values: dict[str, Any], elastic_values: dict[str, Any], tmp_path: Path):
    base = (elastic_values if kind in ELASTIC else values) | {"gradient_accumulation_steps": 2}
    base |= ELASTIC.get(kind, {})
    if kind in CONVERSIONS:
        base |= {"conversion": CONVERSIONS[kind], "ramp_steps": 3, "flow": {"distillation": 1.0}}
    if kind == "elastic":
        base |= {"elastic": base["elastic"] | {"decision_noise": 1.0}}
    whole = config_of(base, output=tmp_path / "whole")
    Trainer(whole, quiet=True).run()
    broken = config_of(base, output=tmp_path / "broken")
    trainer = Trainer(broken, quiet=True)
    batches = trainer.batches.from_step(trainer.step)
    for _ in range(4):
        trainer._train_step(batches)
    trainer.save_checkpoint()
    resumed = Trainer(broken, quiet=True)
    assert resumed.step == 4
    resumed.run()
    expected = {step: loss for step, loss in losses_of(whole.output).items() if step > 4}
    assert losses_of(broken.output) == expected
    one, other = latest_checkpoint(whole.output / "checkpoints"), latest_checkpoint(broken.output / "checkpoints")
    assert one is not None
    assert other is not None
    for name in ("model", "optimizer", "ema"):
        a, b = load_file(one / f"{name}.safetensors"), load_file(other / f"{name}.safetensors")
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name


def test_kill_during_a_save_loses_nothing(values: dict[str, Any], tmp_path: Path):
    """A process that dies inside a save, at its last moment, resumes from the checkpoint before."""
    whole = config_of(values, output=tmp_path / "whole")
    Trainer(whole, quiet=True).run()
    config = written(values, tmp_path, output=str(tmp_path / "killed"))
    die = (
        "import os, signal; from pathlib import Path; real = Path.rename\n"
        "def rename(self, target):\n"
        "    if str(target).endswith('step-0000004'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(self, target)\n"
        "Path.rename = rename\n"
    )
    run = subprocess.run([sys.executable, "-c", die + RUN, str(config)], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    checkpoints = tmp_path / "killed" / "checkpoints"
    assert latest_checkpoint(checkpoints) == checkpoints / "step-0000002"
    assert (checkpoints / ".step-0000004").is_dir()  # the save was under way
    subprocess.run([sys.executable, "-c", RUN, str(config)], check=True)
    assert losses_of(tmp_path / "killed") == losses_of(whole.output)


def test_kill_at_any_moment_resumes(values: dict[str, Any], tmp_path: Path):
    whole = config_of(values, output=tmp_path / "whole", steps=40)
    Trainer(whole, quiet=True).run()
    config = written(values, tmp_path, output=str(tmp_path / "killed"), steps=40)
    process = subprocess.Popen([sys.executable, "-c", RUN, str(config)])
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 120
    while latest_checkpoint(checkpoints) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    subprocess.run([sys.executable, "-c", RUN, str(config)], check=True)
    assert losses_of(tmp_path / "killed") == losses_of(whole.output)


def test_two_ranks_agree(elastic_values: dict[str, Any], tmp_path: Path):
    """DDP on two gloo processes: the same weights on both ranks, and one global budget."""
    script = tmp_path / "rank.py"
    script.write_text(
        "import sys, torch\nfrom pathlib import Path\n"
        "from elastic_dit.training.config import TrainConfig\nfrom elastic_dit.training.loop import Trainer\n"
        "trainer = Trainer(TrainConfig.load(Path(sys.argv[1])), quiet=True)\n"
        "batches = trainer.batches.from_step(trainer.step)\n"
        "values = [trainer._train_step(batches) for _ in range(4)]\n"
        "rank = trainer.accelerator.process_index\n"
        "state = trainer.accelerator.unwrap_model(trainer.model).state_dict()\n"
        "group = torch.distributed.distributed_c10d._get_default_group()._get_backend(torch.device('cpu'))\n"
        "torch.save({'patience': group.options._timeout.total_seconds(), 'state': state,"
        " 'budget': [v['budget_loss'] for v in values],"
        " 'own': [v['flops/share'] for v in values]}, sys.argv[2] + f'/rank{rank}.pt')\n"
    )
    config = written(elastic_values | {"elastic": {"init": "random", "router_hidden_size": 8}}, tmp_path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*launch, str(script), str(config), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    one, two = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(one["state"][name], two["state"][name]) for name in one["state"])
    assert one["patience"] >= 24 * 3600  # the second waits for as long as the first encodes
    assert one["own"] != two["own"]  # the ranks saw different samples
    assert one["budget"] == pytest.approx(two["budget"], rel=1e-6)  # and were held to the same mean


def test_nan_stops_and_names_the_checkpoint(values: dict[str, Any]):
    trainer = Trainer(config_of(values), quiet=True)
    batches = trainer.batches.from_step(trainer.step)
    trainer._train_step(batches)
    trainer.save_checkpoint()
    with torch.no_grad():
        trainer.parameters[0].fill_(float("nan"))
    with pytest.raises(TrainingError, match="step-0000001"):
        trainer._train_step(batches)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"])
def test_a_checkpoint_that_is_cut_short_is_refused(values: dict[str, Any], file: str):
    damaged = Trainer(config_of(values), quiet=True).save_checkpoint() / file
    damaged.write_bytes(damaged.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="step-0000000 is no complete checkpoint"):
        Trainer(config_of(values), quiet=True)


def scaled(config: TrainConfig) -> Trainer:
    """A trainer with the gradient scaler of fp16, which accelerate builds on GPUs only."""
    real = Accelerator.prepare_optimizer

    def prepare_optimizer(self: Accelerator, *args: Any, **options: Any) -> Any:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        return real(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accelerator, "prepare_optimizer", prepare_optimizer)
        return Trainer(config, quiet=True)


def test_a_step_that_fp16_skips_is_none_of_the_schedule_and_the_average(values: dict[str, Any]):
    """The scale was too large: it is halved, weights stay, and a resumed run has the same scale."""
    config = config_of(values, optimizer={"learning_rate": 1e-3, "warmup_steps": 10})
    trainer = scaled(config)
    batches = trainer.batches.from_step(0)
    trainer._train_step(batches)
    assert trainer.scheduler.last_epoch == trainer.ema.optimization_step == 1
    trainer.parameters[0].register_hook(lambda gradient: gradient * math.inf)
    before = [parameter.detach().clone() for parameter in trainer.parameters]
    trainer._train_step(batches)
    assert trainer.step == 2
    assert trainer.scheduler.last_epoch == trainer.ema.optimization_step == 1
    assert all(torch.equal(*pair) for pair in zip(before, trainer.parameters, strict=True))
    trainer.save_checkpoint()
    scaler = scaled(config).accelerator.scaler
    assert scaler is not None
    assert scaler.get_scale() == 2.0**9


@pytest.mark.parametrize("trainable", ["lora", "routers"])
def test_a_checkpoint_holds_what_learns(
    trainable: str, elastic_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """The frozen backbone comes from the model again, its channels in the order in which they were and unmeasured."""
    config = config_of(elastic_values, trainable=trainable)
    trainer = Trainer(config, quiet=True)
    trainer._train_step(trainer.batches.from_step(0))
    saved = load_file(trainer.save_checkpoint() / "model.safetensors")
    assert saved.keys() == {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    monkeypatch.setattr("elastic_dit.training.importance.measure_importance", lambda *_: pytest.fail("measured"))
    resumed = Trainer(config, quiet=True)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_checkpoint_of_all_weights_is_gone_on_from(elastic_values: dict[str, Any]):
    """As versions before wrote them, and without orders: what they hold counts."""
    config = config_of(elastic_values, trainable="routers")
    trainer = Trainer(config, quiet=True)
    trainer._train_step(trainer.batches.from_step(0))
    checkpoint = trainer.save_checkpoint()
    whole = {name: value + 1 for name, value in trainer.model.state_dict().items()}
    save_file(whole, checkpoint / "model.safetensors")
    meta = json.loads((checkpoint / "state.json").read_text())
    del meta["extra"]["elastic"]["orders"]
    (checkpoint / "state.json").write_text(json.dumps(meta))
    resumed = Trainer(config, quiet=True).model.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


def test_a_checkpoint_that_lacks_what_learns_is_refused(values: dict[str, Any]):
    trainer = Trainer(config_of(values), quiet=True)
    checkpoint = trainer.save_checkpoint()
    weights = load_file(checkpoint / "model.safetensors")
    name = next(iter(weights))
    save_file({key: value for key, value in weights.items() if key != name}, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"missing or left over: {name}"):
        Trainer(config_of(values), quiet=True)


@pytest.fixture
def stopped(values: dict[str, Any]) -> dict[str, Any]:
    """The keys of a run that was stopped after four of its six steps."""
    trainer = Trainer(config_of(values), quiet=True)
    batches = trainer.batches.from_step(0)
    for _ in range(4):
        trainer._train_step(batches)
    trainer.save_checkpoint()
    return values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 5}, "seed was 0, is now 5"),
        ({"batch_size": 2, "ema_decay": 0.5}, "batch_size was 4, is now 2; ema_decay was 0.999, is now 0.5"),
        ({"model": "emoji-flux:small"}, "model was 'emoji-flux:tiny', is now 'emoji-flux:small'"),
        ({"elastic": {"rho_g": 0.5}}, "elastic was None, is now {"),
        ({"optimizer": {"betas": [0.5, 0.6]}}, r"optimizer.betas was \[0.9, 0.99\], is now \[0.5, 0.6\]"),
        ({"steps": 3}, "has more steps than the 3 of the config"),
    ],
)
def test_a_run_that_would_train_something_else_is_refused(
    stopped: dict[str, Any], changes: dict[str, Any], message: str
):
    with pytest.raises(ConfigError, match=rf"step-0000004 .*{message}.* choose another `output`"):
        Trainer(config_of(stopped, **changes), quiet=True)


def test_what_may_change_in_a_run(stopped: dict[str, Any]):
    """Also after a NaN: the new learning rates hold from the checkpoint on, where the schedule goes on."""
    config = config_of(stopped, steps=12, log_every=3, checkpoint_every=5, threads=2, sample_prompts=["a dog"])
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-5, 8
    trainer = Trainer(config, quiet=True)
    assert trainer.step == 4
    batches = trainer.batches.from_step(4)
    assert [trainer._train_step(batches)["learning_rate"] for _ in range(2)] == pytest.approx([5e-6, 6.25e-6])


def test_a_checkpoint_without_a_config_is_gone_on_from(stopped: dict[str, Any]):
    """As versions before wrote them."""
    file = stopped["output"] / "checkpoints" / "step-0000004" / "state.json"
    meta = json.loads(file.read_text())
    del meta["extra"]["config"]
    file.write_text(json.dumps(meta))
    assert Trainer(config_of(stopped), quiet=True).step == 4


def test_gradient_checkpointing_changes_nothing(elastic_values: dict[str, Any], tmp_path: Path):
    outputs = []
    for checkpointing in (False, True):
        config = config_of(
            elastic_values, output=tmp_path / str(checkpointing), gradient_checkpointing=checkpointing, steps=3
        )
        Trainer(config, quiet=True).run()
        outputs.append(losses_of(config.output))
    assert outputs[0] == pytest.approx(outputs[1], rel=1e-5)


@pytest.mark.parametrize("trainable", ["lora", "routers"])
def test_only_what_should_learn_learns(trainable: str, elastic_values: dict[str, Any]):
    config = config_of(elastic_values, trainable=trainable, steps=3, ema_decay=0)
    trainer = Trainer(config, quiet=True)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    result = trainer.run()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert any(name.startswith("routers.") for name in moved)
    assert all("lora_" in name or name.startswith("routers.") for name in moved)
    assert any("lora_" in name for name in moved) == (trainable == "lora")
    pipeline = EmojiFluxPipeline.from_size("tiny", seed=0)
    elastic = elastic_dit.load(pipeline, result)
    for name, value in elastic.stack.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[f"routers.{name}"])


def test_importance_order_keeps_the_function_and_puts_the_best_first(elastic_values: dict[str, Any]):
    from elastic_dit.training.importance import measure_importance, order_channels

    trainer = Trainer(config_of(elastic_values, importance_batches=0), quiet=True)
    elastic = trainer.trainee.elastic
    assert elastic is not None
    with torch.no_grad():
        for parameter in elastic.transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    elastic.eval_mode()
    trainer.config.importance_batches = 2
    batches = [inputs for inputs, _ in trainer._importance_batches()]
    inputs = batches[0]
    with torch.no_grad():
        before = elastic.transformer(**inputs, return_dict=False)[0]
        order_channels(elastic, batches)
        elastic.reset()
        after = elastic.transformer(**inputs, return_dict=False)[0]
    assert torch.allclose(before, after, atol=1e-5)
    for values in measure_importance(elastic, batches).values():
        assert (values.diff() <= 1e-4 * values.max()).all()


def test_distillation_starts_at_zero(elastic_values: dict[str, Any]):
    config = config_of(elastic_values, flow={"distillation": 1.0}, steps=2)
    Trainer(config, quiet=True).run()
    assert log_of(config.output)[0]["distillation_loss"] < 1e-8


@pytest.fixture
def another_precision() -> Iterator[None]:
    """Accelerate takes one mixed precision per process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("another_precision")
def test_the_teacher_computes_in_the_dtype_of_training(elastic_values: dict[str, Any]):
    """Under bf16 a float32 teacher costs several times the time and memory of its student."""
    trainer = Trainer(config_of(elastic_values, flow={"distillation": 1.0}, mixed_precision="bf16"), quiet=True)
    teacher = trainer.trainee._teacher
    assert teacher is not None
    seen: list[torch.dtype] = []
    teacher.get_submodule("proj_out").register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    values = trainer._train_step(trainer.batches.from_step(0))
    assert seen[-1] == torch.bfloat16
    assert values["distillation_loss"] < 1e-8


def test_fresh_routers_start_at_the_route_of_an_adapter(elastic_values: dict[str, Any], tmp_path: Path):
    """A static adapter is trained; then routers on its weights open the same blocks at the nearest widths."""
    pipeline = EmojiFluxPipeline.from_size("tiny", seed=0)
    pipeline.save_pretrained(tmp_path / "model")
    static = elastic_dit.elasticize(pipeline, elastic_dit.ElasticConfig.of(route=(1.0, 0.0, 0.55)))
    start = static.save(tmp_path / "start")
    values = elastic_values | {"model": str(tmp_path / "model"), "adapter": str(start)}
    static_run = config_of({k: v for k, v in values.items() if k != "elastic"}, output=tmp_path / "static")
    trained = Trainer(static_run, quiet=True).run()

    trainee = Trainer(config_of(values, adapter=str(trained), steps=1), quiet=True).trainee
    assert trainee.elastic is not None
    own = trainee.elastic.weights.changed(trainee.transformer)
    saved = load_file(trained / "elastic_model.safetensors")
    assert {f"transformer.{name}" for name in own} == set(saved)
    assert all(torch.equal(value, saved[f"transformer.{name}"]) for name, value in own.items())
    trainee.elastic.eval_mode()
    trainee.pipeline("a dog", height=16, width=16, num_inference_steps=1)
    trace = trainee.elastic.trace
    assert [trace[0, block, trace.branches[0], 0].width for block in range(3)] == [1.0, 0.0, 0.5]


def test_validation_and_samples(elastic_values: dict[str, Any], shards: Path):
    data = elastic_values["data"] | {"validation": str(shards / "train")}
    config = config_of(
        elastic_values,
        data=data,
        sample_prompts=["a dog", "a cat"],
        sample_every=6,
        validate_every=6,
        validation_batches=2,
    )
    Trainer(config, quiet=True).run()
    assert (config.output / "samples" / "step-0000006.png").is_file()
    names = {name for line in log_of(config.output) for name in line}
    assert {"validation/loss", "validation/sigma_0.5/flops/std"} <= names


def test_clear_errors(values: dict[str, Any], tmp_path: Path):
    file = tmp_path / "bad.yaml"
    file.write_text("output: x\nmodel: emoji-flux:tiny\nstep: 3\ndata: {path: y}\n")
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        TrainConfig.load(file)
    with pytest.raises(ConfigError, match="routers needs"):
        Trainer(config_of(values, trainable="routers"), quiet=True)
    config = config_of(values)
    broken = config.output / "checkpoints" / "step-0000002"
    broken.mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        Trainer(config, quiet=True)
