"""Adapter folders: what is saved comes back, what is damaged or foreign is refused, restore undoes it all."""

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from elastic_dit import ElasticModel, Plan, elasticize, load, restore
from elastic_dit.backbones import backbones
from elastic_dit.calibration import CALIBRATION_NAME
from elastic_dit.checkpoint import CONFIG_NAME, INTEGERS, PIECE, WEIGHTS_NAME, _checksum, fingerprint
from elastic_dit.errors import CheckpointError
from tiny import Tiny, TinyElastic, mixed_config, output_of, run, scatter_routers

TARGETS = ["proj_mlp", "proj_out", "ff.net.0.proj", "ff.net.2", "to_q"]
"""Both projections of FLUX's MLPs, and one that keeps its size."""


def other_routers(tiny: Tiny, **changes: Any) -> ElasticModel:
    elastic = elasticize(tiny.transformer, mixed_config(**changes))
    scatter_routers(elastic, tiny.inputs(6, seed=11))
    return elastic


def add_lora(transformer: Any, name: str = "mine", seed: int = 3, targets: Sequence[str] = TARGETS) -> None:
    transformer.add_adapter(LoraConfig(r=2, lora_alpha=3, target_modules=list(targets)), adapter_name=name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in transformer.named_parameters():
            if ".lora_" in parameter_name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def assert_dense(tiny: Tiny) -> None:
    """The transformer is what it was before anything happened to it."""
    expected = tiny.dense.state_dict()
    state = tiny.transformer.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    inputs = tiny.inputs(2)
    assert torch.equal(output_of(tiny.transformer, inputs), output_of(tiny.dense, inputs))
    assert not any("forward" in module.__dict__ for module in tiny.transformer.modules())


def test_same_routes_and_outputs(routed: TinyElastic, tmp_path: Path) -> None:
    steps = routed.steps(3, 3)
    outputs = run(routed.transformer, steps)
    assert routed.elastic.save(tmp_path / "adapter") == tmp_path / "adapter"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]

    another = copy.deepcopy(routed.dense)
    loaded = load(another, tmp_path / "adapter")
    assert loaded.config == routed.elastic.config
    # to rounding: where a tensor lies in memory may choose another kernel
    for mine, again in zip(outputs, run(another, steps), strict=True):
        torch.testing.assert_close(mine, again, rtol=1e-5, atol=1e-6)
    assert list(loaded.trace) == list(routed.elastic.trace)
    for key, taken in loaded.trace.items():
        assert taken.keep_prob == pytest.approx(routed.elastic.trace[key].keep_prob, abs=1e-5)
        assert taken[1:] == routed.elastic.trace[key][1:]


class TestTrainedBackbone:
    """Full fine-tuning: the backbone's weights travel with the adapter."""

    @pytest.fixture(scope="class")
    def saved(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
        """An adapter with changed weights, and what the model computed when it was saved."""
        tiny = Tiny(backbones["flux"])
        elastic = other_routers(tiny)
        elastic.train_mode()
        with torch.no_grad():
            tiny.transformer.single_transformer_blocks[0].proj_mlp.weight.mul_(1.1)
            # permuted channels, whose plain sum is the same
            down = tiny.transformer.transformer_blocks[0].ff.net[2].weight
            down.copy_(down.flip(1))
        elastic.eval_mode()
        output = output_of(tiny.transformer, tiny.inputs(3))
        return elastic.save(tmp_path_factory.mktemp("trained") / "adapter"), output

    @pytest.fixture
    def trained(self, saved: tuple[Path, Tensor]) -> tuple[Path, Tensor, Tiny]:
        return *saved, Tiny(backbones["flux"])

    def test_only_what_changed_is_saved(self, trained: tuple[Path, Tensor, Tiny]) -> None:
        names = [name for name in load_file(trained[0] / WEIGHTS_NAME) if not name.startswith("routers.")]
        assert sorted(names) == [
            "transformer.single_transformer_blocks.0.proj_mlp.weight",
            "transformer.transformer_blocks.0.ff.net.2.weight",
        ]

    def test_loaded_and_put_back(self, trained: tuple[Path, Tensor, Tiny]) -> None:
        folder, output, base = trained
        load(base.transformer, folder)
        assert torch.equal(output_of(base.transformer, base.inputs(3)), output)
        restore(base.transformer)
        assert_dense(base)

    def test_put_back_after_a_cast(self, trained: tuple[Path, Tensor, Tiny]) -> None:
        folder, _, base = trained
        load(base.transformer, folder)
        base.transformer.to(torch.bfloat16)
        restore(base.transformer)
        base.dense.to(torch.bfloat16)
        expected = base.dense.state_dict()
        for name, value in base.transformer.state_dict().items():
            assert value.dtype == torch.bfloat16
            assert torch.equal(value, expected[name])

    def test_loaded_twice_and_saved_again(self, trained: tuple[Path, Tensor, Tiny], tmp_path: Path) -> None:
        folder, output, base = trained
        load(base.transformer, folder)
        again = load(base.transformer, folder).save(tmp_path / "again")
        restore(base.transformer)
        assert_dense(base)
        load(base.transformer, again)
        assert torch.equal(output_of(base.transformer, base.inputs(3)), output)

    def test_in_half_the_space(self, trained: tuple[Path, Tensor, Tiny], tmp_path: Path) -> None:
        folder, output, base = trained
        small = load(base.transformer, folder).save(tmp_path / "small", dtype=torch.bfloat16)
        dtypes = {name.split(".")[0]: value.dtype for name, value in load_file(small / WEIGHTS_NAME).items()}
        assert dtypes == {"routers": torch.float32, "transformer": torch.bfloat16}
        elastic = load(base.transformer, small)
        assert next(base.transformer.parameters()).dtype == torch.float32
        assert elastic.weights.dtype == torch.bfloat16
        again = elastic.save(tmp_path / "again", elastic.weights.dtype)
        assert (again / WEIGHTS_NAME).read_bytes() == (small / WEIGHTS_NAME).read_bytes()
        torch.testing.assert_close(output_of(base.transformer, base.inputs(3)), output, rtol=0.1, atol=0.1)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_cast_is_no_change(self, tiny_flux: Tiny, dtype: torch.dtype, tmp_path: Path) -> None:
        elastic = other_routers(tiny_flux)
        elastic.train_mode()
        tiny_flux.transformer.to(dtype)
        names = load_file(elastic.save(tmp_path / "routers") / WEIGHTS_NAME)
        assert {name.split(".")[0] for name in names} == {"routers"}
        with torch.no_grad():
            tiny_flux.transformer.proj_out.weight[0, 0] *= 1.01
        names = load_file(elastic.save(tmp_path / "one") / WEIGHTS_NAME)
        assert [name for name in names if not name.startswith("routers.")] == ["transformer.proj_out.weight"]

    def test_a_dtype_that_cannot_be_compared_is_a_change(self, tiny_flux: Tiny) -> None:
        elastic = other_routers(tiny_flux)
        elastic.train_mode()
        tiny_flux.transformer.proj_out.to(torch.float8_e4m3fn)
        assert sorted(elastic.weights.changed(tiny_flux.transformer)) == ["proj_out.bias", "proj_out.weight"]

    def test_gradients_reach_loaded_weights(self, trained: tuple[Path, Tensor, Tiny]) -> None:
        folder, _, base = trained
        load(base.transformer, folder).train_mode()
        base.transformer(**base.inputs(6, seed=11), return_dict=False)[0].square().sum().backward()
        gradient = base.transformer.single_transformer_blocks[0].proj_mlp.weight.grad
        assert gradient is not None
        assert gradient.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8])
def test_a_checksum_is_of_the_bits_alone(dtype: torch.dtype) -> None:
    """However many pieces and threads: here beside numpy's own 64-bit integers."""
    value = (torch.randn(3, PIECE - 5, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    integers = value.flatten().view(INTEGERS[dtype.itemsize]).numpy().astype(np.int64)
    with np.errstate(over="ignore"):
        expected = int(integers.sum()), int((integers * np.arange(len(integers))).sum())
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            assert _checksum(value, dtype) == expected
    finally:
        torch.set_num_threads(threads)
    assert _checksum(value.flip(0), dtype)[0] == expected[0]
    assert _checksum(value.flip(0), dtype)[1] != expected[1]
    assert _checksum(value.t().contiguous().t(), dtype) == expected


class TestRefused:
    @pytest.fixture
    def folder(self, routed_flux: TinyElastic, tmp_path: Path) -> Path:
        return routed_flux.elastic.save(tmp_path / "adapter")

    def test_another_base(self, folder: Path) -> None:
        other = Tiny(backbones["sd3"])
        message = "for 'FluxTransformer2DModel'.*but the transformer is 'SD3Transformer2DModel'"
        with pytest.raises(CheckpointError, match=message):
            load(other.transformer, folder)
        assert_dense(other)

    def test_another_size_of_the_base(self, folder: Path) -> None:
        from diffusers import FluxTransformer2DModel

        config = dict(Tiny(backbones["flux"]).transformer.config) | {"num_single_layers": 1}
        other = FluxTransformer2DModel.from_config(config)
        with pytest.raises(CheckpointError, match="whose weights have other shapes"):
            load(other, folder)

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda card: card["elastic"].update(taw=1), r"unknown key 'elastic\.taw' \(did you mean 'tau'\?\)"),
            (lambda card: card.update(mood=1), "unknown key 'mood'"),
            (lambda card: card.update(format=99, mood=1), "has format 99, and this elastic-dit reads up to 1"),
            (lambda card: card["elastic"].update(tau=7), r"elastic\.tau = 7"),
            (lambda card: card.pop("base_fingerprint"), "missing key 'base_fingerprint'"),
            (lambda card: card["elastic"].update(router_hidden_size=3), "do not fit its config"),
        ],
    )
    def test_a_changed_config(
        self, tiny_flux: Tiny, folder: Path, edit: Callable[[dict[str, Any]], Any], message: str
    ) -> None:
        card = json.loads((folder / CONFIG_NAME).read_text())
        edit(card)
        (folder / CONFIG_NAME).write_text(json.dumps(card))
        with pytest.raises(CheckpointError, match=message):
            load(tiny_flux.transformer, folder)
        assert_dense(tiny_flux)

    @pytest.mark.parametrize("content", ["{", "", "[]"])
    def test_a_config_that_is_no_json(self, tiny_flux: Tiny, folder: Path, content: str) -> None:
        (folder / CONFIG_NAME).write_text(content)
        with pytest.raises(CheckpointError, match=CONFIG_NAME):
            load(tiny_flux.transformer, folder)

    @pytest.mark.parametrize("size", [0, 5, 200, -10])
    def test_damaged_weights(self, tiny_flux: Tiny, folder: Path, size: int) -> None:
        weights = folder / WEIGHTS_NAME
        weights.write_bytes(weights.read_bytes()[:size])
        with pytest.raises(CheckpointError, match=f"{WEIGHTS_NAME} is damaged"):
            load(tiny_flux.transformer, folder)
        assert_dense(tiny_flux)

    @pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
    def test_a_missing_file(self, tiny_flux: Tiny, folder: Path, name: str) -> None:
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=f"has no {name}; expected an adapter folder"):
            load(tiny_flux.transformer, folder)

    def test_missing_folder(self, tiny_flux: Tiny, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no adapter folder"):
            load(tiny_flux.transformer, tmp_path / "nowhere")

    def test_missing_routers_and_foreign_weights(self, tiny_flux: Tiny, folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_NAME)
        one = next(name for name in tensors if "gate_head" in name)
        save_file({name: value for name, value in tensors.items() if name != one}, folder / WEIGHTS_NAME)
        with pytest.raises(CheckpointError, match="gate_head"):
            load(tiny_flux.transformer, folder)
        save_file(tensors | {"transformer.nothing.weight": torch.ones(2)}, folder / WEIGHTS_NAME)
        with pytest.raises(CheckpointError, match=r"nothing\.weight"):
            load(tiny_flux.transformer, folder)
        assert_dense(tiny_flux)


def test_a_failed_save_keeps_the_old_folder(
    routed_flux: TinyElastic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = routed_flux.elastic.save(tmp_path / "adapter")
    before = (folder / WEIGHTS_NAME).read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("elastic_dit.checkpoint.save_file", full)
    with pytest.raises(OSError, match="no space"):
        routed_flux.elastic.save(folder)
    assert (folder / WEIGHTS_NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


class TestSavedIntoAFolderThatIsThere:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "mine"
        (folder / "photos").mkdir(parents=True)
        (folder / "photos" / "cat.txt").write_text("a cat")
        (folder / "README.md").write_text("a card")
        return folder

    def test_what_else_it_holds_stays(self, routed_flux: TinyElastic, folder: Path) -> None:
        (folder / CALIBRATION_NAME).write_text("of another adapter")
        for _ in range(2):
            routed_flux.elastic.save(folder)
            names = [CONFIG_NAME, WEIGHTS_NAME, "README.md", "photos", "photos/cat.txt"]
            assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == sorted(names)
        assert (folder / "README.md").read_text() == "a card"
        load(copy.deepcopy(routed_flux.dense), folder)

    def test_here(self, routed_flux: TinyElastic, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        routed_flux.elastic.save(".")
        assert Path("README.md").exists()
        load(copy.deepcopy(routed_flux.dense), folder)

    def test_through_a_link(self, routed_flux: TinyElastic, folder: Path) -> None:
        link = folder.with_name("latest")
        link.symlink_to("mine")
        routed_flux.elastic.save(link)
        assert link.is_symlink()
        load(copy.deepcopy(routed_flux.dense), folder)

    def test_a_kill_leaves_it_as_it_was_or_refused(
        self, routed_flux: TinyElastic, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whichever rename is the last, new weights never stand beside an old config."""
        routed_flux.elastic.save(folder)
        rename, renames = Path.rename, iter([True, False])

        def killed(file: Path, target: Path) -> Path:
            if not next(renames):
                raise KeyboardInterrupt
            return rename(file, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", killed)
            with pytest.raises(KeyboardInterrupt):
                routed_flux.elastic.save(folder)
        with pytest.raises(CheckpointError, match=f"has no {CONFIG_NAME}"):
            load(copy.deepcopy(routed_flux.dense), folder)
        routed_flux.elastic.save(folder)
        load(copy.deepcopy(routed_flux.dense), folder)
        assert not (folder / ".partial").exists()


def test_all_files_may_be_read_like_any_other(routed_flux: TinyElastic, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    folder = routed_flux.elastic.save(tmp_path / "adapter")
    assert {file.stat().st_mode for file in folder.iterdir()} == {(tmp_path / "other").stat().st_mode}


class TestLora:
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_slices_take_the_lora_along(self, tiny_flux: Tiny, when: str) -> None:
        """Sliced widths equal masked widths, and the LoRA counts in both."""
        inputs = tiny_flux.inputs(4, seed=2)
        if when == "before":
            add_lora(tiny_flux.transformer)
            elastic = other_routers(tiny_flux)
        else:
            elastic = other_routers(tiny_flux)
            output_of(tiny_flux.transformer, inputs)
            add_lora(tiny_flux.transformer)
        shape = (1, tiny_flux.blocks)
        elastic.force(Plan(np.ones(shape), width=np.full(shape, 0.5)))
        with_lora = output_of(tiny_flux.transformer, inputs)
        tiny_flux.transformer.disable_adapters()
        without = output_of(tiny_flux.transformer, inputs)
        tiny_flux.transformer.enable_adapters()
        assert not torch.allclose(with_lora, without, atol=1e-3)

        elastic.force(None)
        sliced = output_of(tiny_flux.transformer, inputs)
        assert elastic.trace.mean_width < 1
        elastic.train_mode()
        masked = output_of(tiny_flux.transformer, inputs)
        torch.testing.assert_close(masked, sliced, rtol=1e-4, atol=1e-4)
        restore(tiny_flux.transformer)
        assert not any(hasattr(module, "_diffusers_hook") for module in tiny_flux.transformer.modules())

    def test_training_masks_a_lora_added_after(self, tiny_flux: Tiny) -> None:
        elastic, inputs = other_routers(tiny_flux), tiny_flux.inputs(4, seed=2)
        add_lora(tiny_flux.transformer)
        elastic.train_mode()
        masked = output_of(tiny_flux.transformer, inputs)
        elastic.eval_mode()
        sliced = output_of(tiny_flux.transformer, inputs)
        assert elastic.trace.mean_width < 1
        torch.testing.assert_close(masked, sliced, rtol=1e-4, atol=1e-4)

    def test_a_lora_added_after_counts_at_once(self, tiny_flux: Tiny) -> None:
        elastic = elasticize(tiny_flux.transformer)
        inputs = tiny_flux.inputs(2)
        output_of(tiny_flux.transformer, inputs)
        add_lora(tiny_flux.transformer)
        shape = (1, tiny_flux.blocks)
        dense = copy.deepcopy(tiny_flux.dense)
        add_lora(dense)
        elastic.force(Plan(np.ones(shape)))
        assert torch.equal(output_of(tiny_flux.transformer, inputs), output_of(dense, inputs))
        dense.fuse_lora()
        widths = np.full(shape, 0.25)
        elastic.force(Plan(np.ones(shape), width=widths))
        narrow = output_of(tiny_flux.transformer, inputs)
        fused = elasticize(dense)
        fused.force(Plan(np.ones(shape), width=widths))
        torch.testing.assert_close(narrow, output_of(dense, inputs), rtol=1e-4, atol=1e-4)

    def test_saved_and_reloaded(self, tiny_flux: Tiny, tmp_path: Path) -> None:
        add_lora(tiny_flux.transformer)
        elastic = other_routers(tiny_flux)
        steps = tiny_flux.steps(3, 2)
        outputs = run(tiny_flux.transformer, steps)
        folder = elastic.save(tmp_path / "adapter")
        names = {name.split(".")[0] for name in load_file(folder / WEIGHTS_NAME)}
        assert names == {"routers", "lora"}

        base = Tiny(backbones["flux"])
        loaded = load(base.transformer, folder)
        for mine, again in zip(outputs, run(base.transformer, steps), strict=True):
            torch.testing.assert_close(mine, again)
        assert loaded.trace.keys() == elastic.trace.keys()
        restore(base.transformer)
        assert_dense(base)

    def test_a_lora_does_not_change_the_fingerprint(self, tiny_flux: Tiny) -> None:
        before = fingerprint(tiny_flux.transformer)
        add_lora(tiny_flux.transformer)
        assert fingerprint(tiny_flux.transformer) == before

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """An adapter that holds a LoRA."""
        tiny = Tiny(backbones["flux"])
        add_lora(tiny.transformer)
        return other_routers(tiny, max_reuse=0).save(tmp_path / "adapter")

    @pytest.mark.parametrize("targets", [TARGETS, ["to_q"]])
    @pytest.mark.parametrize("learns", [True, False])
    def test_a_users_lora_stays_as_it_is(self, tiny_flux: Tiny, folder: Path, targets: list[str], learns: bool) -> None:
        transformer, inputs = tiny_flux.transformer, tiny_flux.inputs(2)
        add_lora(transformer, "style", 4, targets)
        transformer.requires_grad_(learns)
        state, before = transformer.state_dict(), output_of(transformer, inputs)

        load(transformer, folder)
        assert transformer.active_adapters() == ["style", "elastic"]
        assert all(p.requires_grad == (learns or ".elastic." in name) for name, p in transformer.named_parameters())
        both = output_of(transformer, inputs)
        transformer.set_adapter("elastic")
        assert not torch.allclose(output_of(transformer, inputs), both, atol=1e-3)
        transformer.set_adapter(["style", "elastic"])
        transformer.requires_grad_(learns)

        restore(transformer)
        assert transformer.active_adapters() == ["style"]
        assert transformer.state_dict().keys() == state.keys()
        assert torch.equal(output_of(transformer, inputs), before)
        assert all(parameter.requires_grad == learns for parameter in transformer.parameters())

    def test_a_users_disabled_lora_does_not_count(self, tiny_flux: Tiny, folder: Path) -> None:
        add_lora(tiny_flux.transformer, "style", 4)
        tiny_flux.transformer.disable_adapters()
        load(tiny_flux.transformer, folder)
        alone = Tiny(backbones["flux"])
        load(alone.transformer, folder)
        inputs = tiny_flux.inputs(2)
        assert torch.equal(output_of(tiny_flux.transformer, inputs), output_of(alone.transformer, inputs))
        restore(tiny_flux.transformer)
        assert torch.equal(output_of(tiny_flux.transformer, inputs), output_of(tiny_flux.dense, inputs))

    def test_all_loras_taken_off_by_the_user(self, tiny_flux: Tiny, folder: Path) -> None:
        load(tiny_flux.transformer, folder)
        tiny_flux.transformer.unload_lora()
        restore(tiny_flux.transformer)
        assert_dense(tiny_flux)

    def test_the_adapters_own_lora_is_saved_again(self, tiny_flux: Tiny, folder: Path, tmp_path: Path) -> None:
        add_lora(tiny_flux.transformer, "style", 4)
        elastic = load(tiny_flux.transformer, folder)
        again = elastic.save(tmp_path / "again")
        assert (again / WEIGHTS_NAME).read_bytes() == (folder / WEIGHTS_NAME).read_bytes()
        assert json.loads((again / CONFIG_NAME).read_text()) == json.loads((folder / CONFIG_NAME).read_text())

    @pytest.mark.parametrize("user", [False, True])
    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda card, tensors: [tensors.pop(name) for name in list(tensors) if "lora" in name], "missing"),
            (lambda card, tensors: tensors.pop("lora.proj_out.lora_A.weight"), r"proj_out\.lora_A"),
            (lambda card, tensors: tensors.update({"lora.nothing.weight": torch.ones(2)}), r"nothing\.weight"),
            (
                lambda card, tensors: tensors.update(
                    {name: value[:, :1].contiguous() for name, value in tensors.items() if "lora_A" in name}
                ),
                "another shape",
            ),
            (lambda card, tensors: card["lora"].update(target_modules=["nowhere"]), "nowhere"),
            (lambda card, tensors: card["lora"].update(target_modules=["to_q", "norm_out"]), "not supported"),
            (lambda card, tensors: card["lora"].update(mood=1), "mood"),
            (lambda card, tensors: card.update(lora=None), "names no LoRA"),
        ],
    )
    def test_one_that_does_not_fit_leaves_nothing_behind(
        self,
        tiny_flux: Tiny,
        folder: Path,
        tmp_path: Path,
        edit: Callable[[dict[str, Any], dict[str, Tensor]], Any],
        message: str,
        user: bool,
    ) -> None:
        bad = shutil.copytree(folder, tmp_path / "bad")
        card, tensors = json.loads((bad / CONFIG_NAME).read_text()), load_file(bad / WEIGHTS_NAME)
        edit(card, tensors)
        (bad / CONFIG_NAME).write_text(json.dumps(card))
        save_file(tensors, bad / WEIGHTS_NAME)
        transformer, inputs = tiny_flux.transformer, tiny_flux.inputs(2)
        if user:
            add_lora(transformer, "style", 4, ["proj_mlp"])
        names, before = transformer.state_dict().keys(), output_of(transformer, inputs)

        with pytest.raises(CheckpointError, match=message):
            load(transformer, bad)
        assert list(getattr(transformer, "peft_config", ())) == ["style"] * user
        assert transformer.state_dict().keys() == names
        assert torch.equal(output_of(transformer, inputs), before)
        load(transformer, folder)
        assert transformer.active_adapters() == ["style"] * user + ["elastic"]

    def test_the_name_of_ours_is_taken(self, tiny_flux: Tiny, folder: Path) -> None:
        add_lora(tiny_flux.transformer, "elastic", 4)
        before = output_of(tiny_flux.transformer, tiny_flux.inputs(2))
        with pytest.raises(CheckpointError, match="has a LoRA 'elastic' already"):
            load(tiny_flux.transformer, folder)
        assert torch.equal(output_of(tiny_flux.transformer, tiny_flux.inputs(2)), before)

    def test_two_active_loras_are_refused(self, tiny_flux: Tiny, tmp_path: Path) -> None:
        add_lora(tiny_flux.transformer, "one")
        add_lora(tiny_flux.transformer, "two")
        tiny_flux.transformer.set_adapter(["one", "two"])
        with pytest.raises(CheckpointError, match=r"one active LoRA.*one.*two"):
            elasticize(tiny_flux.transformer).save(tmp_path / "adapter")


class Scaled(nn.Linear):
    """A layer whose weight is not what it multiplies by, as a quantised layer's is not."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_layers_that_cannot_be_sliced_still_come_out_right(tiny_flux: Tiny) -> None:
    for transformer in (tiny_flux.transformer, tiny_flux.dense):
        for block in transformer.single_transformer_blocks:
            for name in ("proj_mlp", "proj_out"):
                old = getattr(block, name)
                new = Scaled(old.in_features, old.out_features)
                new.load_state_dict(old.state_dict())
                setattr(block, name, new)
    elastic, inputs = other_routers(tiny_flux), tiny_flux.inputs(4, seed=2)
    sliced = output_of(tiny_flux.transformer, inputs)
    assert elastic.trace.mean_width < 1
    elastic.train_mode()
    torch.testing.assert_close(output_of(tiny_flux.transformer, inputs), sliced, rtol=1e-4, atol=1e-4)
