"""Each method does what its paper says, on the steps and blocks it says."""

import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from elastic_dit.baselines import Task, baselines
from elastic_dit.baselines.fewer_steps import spread_steps
from elastic_dit.baselines.magcache import RETENTION_RATIO, calibrate
from elastic_dit.baselines.static_prune import kept_blocks
from elastic_dit.baselines.teacache import fit
from elastic_dit.errors import BackboneError, ConfigError
from runs import Runs

FLUX_COEFFICIENTS = [498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861]


def test_compiled_compiles_every_block(flux: Runs) -> None:
    transformer, _ = flux.applied("compiled", 0.0)
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    assert all(block._compiled_call_impl is not None for block in blocks)
    with pytest.raises(BackboneError, match="no blocks that diffusers can compile"):
        baselines["compiled"].apply(torch.nn.Linear(2, 2), 0.0, flux.task)


def test_compiled_has_no_graph_breaks(qwen: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda block, **options: compiled(block, backend="eager", **options)
    )
    torch.testing.assert_close(qwen.run(*qwen.applied("compiled", 0.0)), qwen.run(qwen.fresh()))


@pytest.mark.parametrize(("steps", "share", "expected"), [(8, 0.5, (0, 2, 4, 6)), (28, 0.25, 21), (4, 0.99, (0,))])
def test_fewer_steps_calls_the_transformer_so_often(steps: int, share: float, expected: Any) -> None:
    kept = spread_steps(steps, share)
    assert kept == expected or len(kept) == expected
    assert kept[0] == 0 and len(set(kept)) == len(kept) and max(kept) < steps
    runs = Runs("flux", steps)
    transformer, applied = runs.applied("fewer-steps", share)
    assert runs.steps_of(transformer.proj_out, transformer, applied) == list(range(len(kept)))
    with pytest.raises(ConfigError, match=r"\[0, 1\)"):
        spread_steps(steps, 1.0)


def test_static_prune_has_the_kept_blocks(flux: Runs, qwen: Runs) -> None:
    assert kept_blocks(19, 11 / 19) == [0, 2, 4, 7, 9, 11, 14, 16]
    assert len(kept_blocks(60, 11 / 19)) == 25
    transformer, _ = flux.applied("static-prune", 0.5)
    assert len(transformer.transformer_blocks) == 1 and len(transformer.single_transformer_blocks) == 2
    transformer, _ = qwen.applied("static-prune", 1 / 3)
    for kept, index in zip(transformer.transformer_blocks, (0, 1), strict=True):
        dense = qwen.tiny.dense.get_submodule(f"transformer_blocks.{index}")
        torch.testing.assert_close(dict(kept.named_parameters()), dict(dense.named_parameters()))
    with pytest.raises(ConfigError, match=r"\[0, 1\)"):
        qwen.applied("static-prune", 1.5)


def test_first_block_cache_at_zero_is_dense(runs: Runs) -> None:
    dense = runs.run(runs.fresh())
    torch.testing.assert_close(runs.run(*runs.applied("first-block-cache", 0.0)), dense, rtol=0, atol=0)


def test_first_block_cache_always_runs_the_first_block(flux: Runs) -> None:
    transformer, applied = flux.applied("first-block-cache", 100.0)
    first, second = (block.attn for block in transformer.transformer_blocks)
    assert flux.steps_of(first, transformer, applied) == list(range(8))
    assert flux.steps_of(second, transformer, applied) == [0]


@pytest.mark.parametrize(
    ("steps", "interval", "expected"), [(8, 2, [0, 1, 3, 5, 7]), (28, 5, [0, 1, 2, 4, 9, 14, 19, 24])]
)
def test_taylorseer_computes_every_nth_step(steps: int, interval: int, expected: list[int]) -> None:
    runs = Runs("flux", steps)
    transformer, applied = runs.applied("taylorseer", interval)
    for module in (transformer.transformer_blocks[0].attn, transformer.single_transformer_blocks[-1].proj_out):
        assert runs.steps_of(module, transformer, applied) == expected
    with pytest.raises(ConfigError, match="whole number"):
        runs.applied("taylorseer", 2.5)


@pytest.mark.parametrize(("interval", "expected"), [(2, [0, 2, 4, 6]), (3, [0, 3, 6])])
def test_fora_computes_every_nth_step(interval: int, expected: list[int]) -> None:
    runs = Runs("flux")
    transformer, applied = runs.applied("fora", interval)
    double, single = transformer.transformer_blocks[0], transformer.single_transformer_blocks[-1]
    for module in (double.attn.to_q, double.ff.net[2], single.attn.to_q):
        assert runs.steps_of(module, transformer, applied) == expected
    for module in (double.norm1.linear, single.norm.linear):
        assert runs.steps_of(module, transformer, applied) == list(range(8))
    with pytest.raises(ConfigError, match="whole number"):
        runs.applied("fora", 2.5)


def test_fora_scales_what_it_reuses_by_the_gate_of_its_own_step(flux: Runs) -> None:
    transformer, applied = flux.applied("fora", 2)
    block = transformer.single_transformer_blocks[0]
    gates: list[Tensor] = []
    added: list[Tensor] = []
    block.norm.register_forward_hook(lambda _m, _i, output: gates.append(output[1]))
    block.register_forward_hook(
        lambda _m, _a, kwargs, output: added.append(output[1] - kwargs["hidden_states"]), with_kwargs=True
    )
    flux.run(transformer, applied)
    for computed, reused in zip(range(0, 8, 2), range(1, 8, 2), strict=True):
        branch = added[computed] / gates[computed][:, None]
        torch.testing.assert_close(added[reused], gates[reused][:, None] * branch, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(added[reused], added[computed], rtol=1e-3, atol=1e-4)


def test_taylorseer_forecasts_a_straight_line(flux: Runs) -> None:
    transformer, applied = flux.applied("taylorseer", 6)
    applied.restart()
    outputs: list[Tensor] = []
    for index in range(6):
        with transformer.cache_context("one"), torch.no_grad():
            inputs = flux.tiny.steps(2, 6)[index]
            outputs.append(transformer(**inputs, return_dict=False)[0])
    slope = (outputs[3] - outputs[1]) / 2  # 0, 1 and 3 are computed
    torch.testing.assert_close(outputs[4], outputs[3] + slope)
    torch.testing.assert_close(outputs[5], outputs[3] + 2 * slope)


def test_taylorseer_keeps_its_factors_in_the_models_dtype(flux: Runs) -> None:
    transformer = flux.fresh().bfloat16()
    baselines["taylorseer"].apply(transformer, 2, flux.task)
    assert transformer._cache_config.taylor_factors_dtype == torch.bfloat16


def residuals(runs: Runs, transformer: Any) -> list[Tensor]:
    """What all blocks add to the image stream, at each step of a dense FLUX run."""
    ends: list[Tensor] = []
    handles = [
        transformer.x_embedder.register_forward_hook(lambda _module, _inputs, output: ends.append(output)),
        transformer.single_transformer_blocks[-1].register_forward_hook(lambda _m, _i, output: ends.append(output[1])),
    ]
    runs.run(transformer)
    for handle in handles:
        handle.remove()
    return [after - before for before, after in zip(ends[::2], ends[1::2], strict=True)]


def test_magcache_is_calibrated_in_silence(flux: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    found = residuals(flux, flux.fresh())
    expected = [(later.norm(dim=-1) / former.norm(dim=-1)).mean().item() for former, later in pairwise(found)]
    transformer = flux.fresh()
    assert calibrate(transformer, flux.task) == pytest.approx([1.0, *expected], rel=1e-4)
    torch.testing.assert_close(flux.run(transformer), flux.run(flux.fresh()), rtol=0, atol=0)
    flux.applied("magcache", 0.1)
    assert capfd.readouterr() == ("", "")


def test_magcache_skips_while_the_error_is_small(flux: Runs) -> None:
    threshold = 0.12
    transformer, applied = flux.applied("magcache", threshold)
    ratios = calibrate(flux.fresh(), flux.task)
    expected, product, error, skipped = [], 1.0, 0.0, 0
    for step, ratio in enumerate(ratios):
        if step >= int(RETENTION_RATIO * 8 + 0.5):
            product, skipped = product * ratio, skipped + 1
            error += abs(1 - product)
            if error <= threshold and skipped <= 5:
                continue
        expected.append(step)
        product, error, skipped = 1.0, 0.0, 0
    assert flux.steps_of(transformer.transformer_blocks[0].attn, transformer, applied) == expected
    assert 1 < len(expected) < 8


@pytest.mark.parametrize(("interval", "expected"), [(2, [0, 1, 2, 4, 6]), (3, [0, 1, 2, 3, 6]), (8, [0, 1, 2])])
def test_fastercache_skips_attention_alone(flux: Runs, interval: int, expected: list[int]) -> None:
    """Of 8 steps, the timesteps of the last 5 are below 681."""
    transformer, applied = flux.applied("fastercache", interval)
    double, single = transformer.transformer_blocks[0], transformer.single_transformer_blocks[0]
    for module in (double.attn.to_q, single.attn.to_q):
        assert flux.steps_of(module, transformer, applied) == expected
    assert flux.steps_of(double.ff, transformer, applied) == list(range(8))
    with pytest.raises(ConfigError, match="whole number"):
        flux.applied("fastercache", 1)


def test_fastercache_has_a_state_for_each_branch(qwen: Runs) -> None:
    transformer, applied = qwen.applied("fastercache", 2)
    called = qwen.steps_of(transformer.transformer_blocks[0].attn.to_q, transformer, applied)
    assert called == [step for step in (0, 1, 2, 4, 6) for _ in range(2)]


def relative_changes(values: list[Tensor]) -> list[float]:
    return [((b - a).abs().mean() / a.abs().mean()).item() for a, b in pairwise(values)]


def expected_steps(changes: list[float], polynomial: list[float], threshold: float) -> list[int]:
    """The steps at which TeaCache runs its blocks: the first, the last, and where the sum reaches the threshold."""
    ran, total = [0], 0.0
    for step, change in enumerate(changes, start=1):
        total += float(np.polyval(polynomial, change))
        if total >= threshold or step == len(changes):
            ran.append(step)
            total = 0.0
    return ran


@pytest.mark.parametrize("threshold", [0.1, 0.4, 0.8, 1.5])
def test_teacache_runs_when_the_distance_reaches_the_threshold(flux: Runs, threshold: float) -> None:
    transformer, applied = flux.applied("teacache", threshold)
    tokens: list[Tensor] = []
    temb: list[Tensor] = []
    transformer.x_embedder.register_forward_hook(lambda _module, _inputs, output: tokens.append(output))
    transformer.time_text_embed.register_forward_hook(lambda _module, _inputs, output: temb.append(output))
    called = flux.steps_of(transformer.single_transformer_blocks[-1].proj_out, transformer, applied)
    linear = transformer.transformer_blocks[0].norm1.linear
    modulated = []
    for x, embedding in zip(tokens, temb, strict=True):
        shift, scale = linear(functional.silu(embedding)).chunk(6, dim=1)[:2]
        modulated.append(functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None])
    expected = expected_steps(relative_changes(modulated), FLUX_COEFFICIENTS, threshold)
    assert called == expected
    assert {0, 7} <= set(called)
    assert (len(called) < 8) == (threshold > 0.1)


@pytest.mark.parametrize("threshold", [0.1, 0.4, 0.8])
def test_teacache_has_a_state_for_each_branch(qwen: Runs, threshold: float) -> None:
    """Qwen-Image has no published polynomial: the change counts as it is."""
    transformer, applied = qwen.applied("teacache", threshold)
    block = transformer.transformer_blocks[0]
    tokens: list[Tensor] = []
    temb: list[Tensor] = []
    transformer.img_in.register_forward_hook(lambda _module, _inputs, output: tokens.append(output))
    transformer.time_text_embed.register_forward_hook(lambda _module, _inputs, output: temb.append(output))
    called = qwen.steps_of(transformer.transformer_blocks[-1].attn, transformer, applied)
    modulated = []
    for x, embedding in zip(tokens[::2], temb[::2], strict=True):
        shift, scale = block.img_mod(embedding).chunk(6, dim=1)[:2]
        modulated.append(functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None])
    expected = expected_steps(relative_changes(modulated), [1.0, 0.0], threshold)
    assert called == [step for step in expected for _ in range(2)]


def test_teacache_is_fitted_to_the_model(qwen: Runs) -> None:
    """A polynomial through each branch's changes of input and velocity; the transformer is as it was."""
    transformer = qwen.fresh()
    coefficients = fit(transformer, qwen.task)
    block = transformer.transformer_blocks[0]
    tokens: list[Tensor] = []
    temb: list[Tensor] = []
    velocities: list[Tensor] = []
    handles = [
        transformer.img_in.register_forward_hook(lambda _module, _inputs, output: tokens.append(output)),
        transformer.time_text_embed.register_forward_hook(lambda _module, _inputs, output: temb.append(output)),
        transformer.register_forward_hook(lambda _module, _inputs, output: velocities.append(output[0])),
    ]
    called = qwen.steps_of(transformer.transformer_blocks[-1].attn, transformer)
    assert len(called) == len(tokens), "nothing is skipped"
    for handle in handles:
        handle.remove()
    modulated = []
    for x, embedding in zip(tokens, temb, strict=True):
        shift, scale = block.img_mod(embedding).chunk(6, dim=1)[:2]
        modulated.append(functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None])
    both = [(modulated[branch::2], velocities[branch::2]) for branch in (0, 1)]
    changes = [change for inputs, _ in both for change in relative_changes(inputs)]
    outputs = [change for _, outputs in both for change in relative_changes(outputs)]
    assert coefficients == pytest.approx(np.polyfit(changes, outputs, 2), rel=1e-2)


def test_teacache_adds_the_residual_of_the_whole_stack(flux: Runs) -> None:
    transformer, applied = flux.applied("teacache", 1e9)
    entered: list[Tensor] = []
    left: list[Tensor] = []
    transformer.x_embedder.register_forward_hook(lambda _module, _inputs, output: entered.append(output))
    transformer.norm_out.register_forward_pre_hook(lambda _module, inputs: left.append(inputs[0]))
    flux.run(transformer, applied)
    stored = left[0] - entered[0]
    for before, after in list(zip(entered, left, strict=True))[1:-1]:
        torch.testing.assert_close(after - before, stored, rtol=1e-4, atol=1e-4)


def test_teacache_that_never_skips_is_dense(runs: Runs) -> None:
    torch.testing.assert_close(runs.run(*runs.applied("teacache", 0.0)), runs.run(runs.fresh()), rtol=0, atol=0)


def test_cache_dit_at_zero_is_dense(runs: Runs) -> None:
    pytest.importorskip("cache_dit")
    torch.testing.assert_close(runs.run(*runs.applied("cache-dit", 0.0)), runs.run(runs.fresh()))


def test_cache_dit_always_runs_its_first_blocks(qwen: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cache_dit")
    transformer, applied = qwen.applied("cache-dit", 100.0)
    first, _, last = (block.attn for block in transformer.transformer_blocks)
    assert qwen.steps_of(first, transformer, applied) == [step for step in range(8) for _ in range(2)]
    assert qwen.steps_of(last, transformer, applied) == [0, 0]
    assert capfd.readouterr() == ("", "")


def test_cache_dit_says_what_it_cannot_do(flux: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cache_dit")
    with pytest.raises(ConfigError, match="has 3"):
        baselines["cache-dit"].apply(flux.fresh(), 0.1, Task(8, 3, lambda *_: None))
    with pytest.raises(BackboneError, match="SD3Transformer2DModel"):
        baselines["cache-dit"].apply(Runs("sd3").fresh(), 0.1, flux.task)


def test_cache_dit_names_its_extra(flux: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cache_dit", None)
    with pytest.raises(ConfigError, match=r"elastic-dit\[peers\]"):
        flux.applied("cache-dit", 0.1)
