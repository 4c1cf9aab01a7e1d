"""What is remembered from step to step belongs to one run, one guidance branch and one sample."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from elastic_dit import Plan, restore
from elastic_dit.backbones import backbones
from sd3 import draw, pipeline_of
from tiny import FALL, Inputs, Tiny, TinyElastic, output_of, run

STEPS = 4


def with_other_text(inputs: Inputs, seed: int = 9) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    text = inputs["encoder_hidden_states"]
    return dict(inputs, encoder_hidden_states=torch.randn(text.shape, generator=generator))


def always_reuse(tiny: TinyElastic, steps: int = STEPS) -> None:
    """A plan under which whatever is stored gets used, so that a leak shows."""
    ones = np.ones((steps, tiny.blocks))
    tiny.elastic.config.max_reuse = 10
    tiny.elastic.force(Plan(ones, reuse=ones))


def fresh(tiny: TinyElastic, steps: list[Inputs]) -> list[Tensor]:
    """What a model that has never run gives."""
    tiny.elastic.reset()
    return run(tiny.transformer, steps)


def assert_same(mine: list[Tensor], expected: list[Tensor]) -> None:
    assert len(mine) == len(expected)
    for step, (a, b) in enumerate(zip(mine, expected, strict=True)):
        assert torch.equal(a, b), f"step {step} differs by up to {(a - b).abs().max()}"


@pytest.fixture(params=["routers", "always_reuse"])
def decided(request: pytest.FixtureRequest) -> Callable[[TinyElastic], None]:
    """Decisions by routers, or a plan that reuses all it can."""
    return always_reuse if request.param == "always_reuse" else lambda tiny: None


def test_runs_in_a_row_equal_fresh_runs(routed: TinyElastic, decided: Callable[[TinyElastic], None]) -> None:
    decided(routed)
    runs = [routed.steps(2, STEPS, seed) for seed in (0, 7)]
    runs.append([with_other_text(inputs) for inputs in runs[0]])
    runs.append(runs[0])
    expected = [fresh(routed, steps) for steps in runs]
    routed.elastic.reset()
    for steps, outputs in zip(runs, expected, strict=True):
        assert_same(run(routed.transformer, steps), outputs)
        assert max(key[0] for key in routed.elastic.trace) == STEPS - 1
        assert len(routed.elastic.trace.branches) == 1


def test_another_resolution_is_another_run(routed: TinyElastic) -> None:
    always_reuse(routed)
    small, large = routed.inputs(2), routed.inputs(2, size=6)
    large["encoder_hidden_states"] = small["encoder_hidden_states"]
    # a lower timestep, as in the step after: only the shape tells
    later = dict(large, timestep=(large["timestep"] * FALL).to(large["timestep"].dtype))
    expected = fresh(routed, [later])
    routed.elastic.reset()
    output_of(routed.transformer, small)
    assert_same(run(routed.transformer, [later]), expected)
    assert not routed.elastic.trace.array("reuse").any()


class TestGuidance:
    """Two calls a step: with the prompt and without."""

    @staticmethod
    def guided(tiny: TinyElastic, names: tuple[str, str] | None) -> tuple[list[Tensor], list[Tensor]]:
        steps = tiny.steps(2, STEPS)
        outputs: tuple[list[Tensor], list[Tensor]] = ([], [])
        tiny.elastic.reset()
        for inputs in steps:
            for branch, given in enumerate((inputs, with_other_text(inputs))):
                if names is None:
                    outputs[branch].append(output_of(tiny.transformer, given))
                else:
                    with tiny.transformer.cache_context(names[branch]):
                        outputs[branch].append(output_of(tiny.transformer, given))
        return outputs

    @pytest.mark.parametrize("names", [None, ("cond", "uncond")], ids=["by_text", "by_context"])
    def test_branches_are_apart(
        self, routed: TinyElastic, decided: Callable[[TinyElastic], None], names: tuple[str, str] | None
    ) -> None:
        if names is not None and not hasattr(routed.transformer, "cache_context"):
            pytest.skip("diffusers gives this transformer no cache_context")
        decided(routed)
        steps = routed.steps(2, STEPS)
        expected = fresh(routed, steps), fresh(routed, [with_other_text(inputs) for inputs in steps])
        cond, uncond = self.guided(routed, names)
        assert routed.elastic.trace.branches == list(names or (0, 1))
        assert len(routed.elastic.trace) == 2 * STEPS * routed.blocks * 2
        assert_same(cond, expected[0])
        assert_same(uncond, expected[1])

    def test_contexts_tell_branches_with_the_same_text_apart(self, routed_flux: TinyElastic) -> None:
        always_reuse(routed_flux)
        routed_flux.elastic.reset()
        for inputs in routed_flux.steps(2, 2):
            for name, scale in (("cond", 1.0), ("uncond", 3.0)):
                with routed_flux.transformer.cache_context(name):
                    output_of(routed_flux.transformer, dict(inputs, hidden_states=inputs["hidden_states"] * scale))
        trace = routed_flux.elastic.trace
        assert trace.branches == ["cond", "uncond"]
        assert trace.array("reuse", "uncond")[1].all()

    def test_a_second_guided_run_is_new(self, routed: TinyElastic) -> None:
        always_reuse(routed)
        first = self.guided(routed, None)
        steps = routed.steps(2, STEPS)
        for step, inputs in enumerate(steps):  # no reset in between
            assert torch.equal(output_of(routed.transformer, inputs), first[0][step])
            assert torch.equal(output_of(routed.transformer, with_other_text(inputs)), first[1][step])


def test_steps_with_one_timestep_are_steps(routed_flux: TinyElastic) -> None:
    """Heun's come twice, and in bfloat16 two steps near 1000 may be one number."""
    steps = routed_flux.steps(1, STEPS)
    for index in (2, 3):
        steps[index]["timestep"] = steps[1]["timestep"]
    for inputs in steps:
        for context in ("cond", "uncond"):
            with routed_flux.transformer.cache_context(context):
                output_of(routed_flux.transformer, inputs if context == "cond" else with_other_text(inputs))
    trace = routed_flux.elastic.trace
    assert {(key[0], key[2]) for key in trace} == {(step, name) for step in range(STEPS) for name in ("cond", "uncond")}


class TestInterrupted:
    """A run that ends early leaves nothing to the next."""

    @pytest.mark.parametrize("done", [1, 2, 3])
    @pytest.mark.parametrize("context", [None, "cond"])
    def test_abort_between_steps(self, routed_flux: TinyElastic, done: int, context: str | None) -> None:
        always_reuse(routed_flux)
        steps = routed_flux.steps(2, STEPS)
        other = [with_other_text(inputs) for inputs in steps]
        expected = fresh(routed_flux, other)
        routed_flux.elastic.reset()

        def go(given: list[Inputs]) -> list[Tensor]:
            if context is None:
                return run(routed_flux.transformer, given)
            with routed_flux.transformer.cache_context(context):
                return run(routed_flux.transformer, given)

        go(steps[:done])
        assert_same(go(other), expected)
        go(steps[:done])
        assert_same(go(steps), fresh(routed_flux, steps))

    @pytest.mark.parametrize("context", [None, "cond"])
    def test_abort_then_a_run_that_starts_later(self, routed_flux: TinyElastic, context: str | None) -> None:
        """Another prompt, and a schedule that starts at a lower timestep (image to image)."""
        always_reuse(routed_flux)
        steps = routed_flux.steps(2, STEPS)
        later = [with_other_text(inputs) for inputs in steps[2:]]
        expected = fresh(routed_flux, later)
        routed_flux.elastic.reset()
        for given, result in ((steps[:2], None), (later, expected)):
            if context is None:
                outputs = run(routed_flux.transformer, given)
            else:
                with routed_flux.transformer.cache_context(context):
                    outputs = run(routed_flux.transformer, given)
            if result is not None:
                assert_same(outputs, result)

    @pytest.mark.parametrize("block", [0, -1])
    def test_an_error_inside_a_block(self, routed: TinyElastic, block: int) -> None:
        """Also a run that starts below the timestep of the error begins with nothing stored."""
        always_reuse(routed)
        elastic, steps = routed.elastic, routed.steps(2, STEPS)
        expected = fresh(routed, steps), fresh(routed, steps[2:])
        broken = elastic.sites[block]
        layer = broken.block.get_submodule(broken.mlps[0].down)

        def explode(*_: object) -> None:
            raise RuntimeError("out of memory")

        for start in (0, 2):
            always_reuse(routed)
            reuse = np.ones((STEPS, routed.blocks))
            reuse[:, broken.index] = 0
            elastic.force(Plan(np.ones_like(reuse), reuse, np.where(reuse, 1.0, 0.5)))
            output_of(routed.transformer, steps[0])
            assert elastic.cache_bytes > 0
            handle = layer.register_forward_pre_hook(explode)
            with pytest.raises(RuntimeError, match="out of memory"):
                output_of(routed.transformer, steps[1])
            handle.remove()
            assert elastic.cache_bytes == 0
            elastic._engine.plan = Plan(np.ones_like(reuse), np.ones_like(reuse))  # `force` would reset
            assert_same(run(routed.transformer, steps[start:]), expected[start // 2])


def test_one_step_runs_do_not_pile_up(routed: TinyElastic) -> None:
    """A one-step model's timestep never rises: each prompt must still be its own run, or memory grows."""
    always_reuse(routed)
    inputs = routed.inputs(2)
    sizes = []
    for seed in range(9):
        output_of(routed.transformer, with_other_text(inputs, seed))
        sizes.append(routed.elastic.cache_bytes)
    assert max(sizes) <= 4 * sizes[0]


def test_the_pipelines_reset_is_heard(routed_flux: TinyElastic) -> None:
    always_reuse(routed_flux)
    steps = routed_flux.steps(2, 2)
    run(routed_flux.transformer, steps)
    assert routed_flux.elastic.cache_bytes > 0
    seen = len(routed_flux.elastic.trace)
    routed_flux.transformer._reset_stateful_cache()
    assert routed_flux.elastic.cache_bytes == 0
    assert len(routed_flux.elastic.trace) == seen > 0


def test_a_pipeline_resets_a_transformer_that_has_no_cache_of_its_own() -> None:
    """SD3's is no `CacheMixin`."""
    tiny = TinyElastic(Tiny(backbones["sd3"]))
    always_reuse(tiny)
    draw(pipeline_of(tiny.transformer), num_inference_steps=STEPS)
    assert len(tiny.elastic.trace) > 0
    assert tiny.elastic.cache_bytes == 0
    restore(tiny.transformer)
    assert not hasattr(tiny.transformer, "_reset_stateful_cache")


def test_memory_of_stored_residuals(routed_flux: TinyElastic) -> None:
    """One residual of each stream for every block and sample, whatever the number of steps."""
    always_reuse(routed_flux)
    run(routed_flux.transformer, routed_flux.steps(3, STEPS))
    image, text, dim = 16, 5, 32
    assert routed_flux.elastic.cache_bytes == 4 * routed_flux.blocks * 3 * (image + text) * dim
    routed_flux.elastic.max_reuse = 0
    routed_flux.elastic.reset()
    run(routed_flux.transformer, routed_flux.steps(3, STEPS))
    assert routed_flux.elastic.cache_bytes == 0


def test_a_limit_on_stored_residuals_is_kept(routed_flux: TinyElastic) -> None:
    always_reuse(routed_flux)
    one = 4 * (16 + 5) * 32  # one sample's residual in one block, in bytes
    routed_flux.elastic.config.cache_limit = 5 * one
    run(routed_flux.transformer, routed_flux.steps(3, STEPS))
    assert routed_flux.elastic.cache_bytes == 5 * one
    reused = routed_flux.elastic.trace.array("reuse").sum()
    routed_flux.elastic.config.cache_limit = None
    routed_flux.elastic.reset()
    run(routed_flux.transformer, routed_flux.steps(3, STEPS))
    assert 0 < reused < routed_flux.elastic.trace.array("reuse").sum()


def test_where_residuals_wait_changes_nothing(routed: TinyElastic) -> None:
    here = run(routed.transformer, routed.steps(3, STEPS))
    assert routed.elastic.trace.reuse_rate > 0
    routed.elastic.config.cache_device = "cpu"
    routed.elastic.reset()
    for a, b in zip(here, run(routed.transformer, routed.steps(3, STEPS)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_margin_stores_fewer_residuals(routed_flux: TinyElastic) -> None:
    sizes = []
    for margin in (None, 0.0):
        routed_flux.elastic.config.store_margin = margin
        routed_flux.elastic.reset()
        run(routed_flux.transformer, routed_flux.steps(6, STEPS))
        sizes.append(routed_flux.elastic.cache_bytes)
    assert 0 < sizes[1] < sizes[0]


def test_a_block_called_by_hand_is_dense(routed_flux: TinyElastic) -> None:
    """Outside the transformer's forward there is no decision to make, before a run and after it."""
    routed_flux.elastic.force(Plan(np.zeros((1, routed_flux.blocks))))
    x, text, temb = torch.randn(1, 16, 32), torch.randn(1, 5, 32), torch.randn(1, 32)
    block, dense = routed_flux.transformer.transformer_blocks[0], routed_flux.dense.transformer_blocks[0]
    for _ in range(2):
        mine, expected = block(x, text, temb), dense(x, text, temb)
        assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))
        output_of(routed_flux.transformer, routed_flux.inputs(1))


def test_training_leaves_nothing_to_inference(routed: TinyElastic) -> None:
    always_reuse(routed)
    steps = routed.steps(2, 2)
    expected = fresh(routed, steps)
    run(routed.transformer, steps[:1])
    routed.elastic.train_mode()
    run(routed.transformer, steps)
    routed.elastic.eval_mode()
    assert_same(run(routed.transformer, steps), expected)
