"""The verbs and the handle, on transformers and on a real diffusers pipeline."""

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from torch import Tensor, nn

import elastic_dit
from elastic_dit import ElasticConfig, Plan, elasticize, restore
from elastic_dit.errors import BackboneError, ConfigError, UnknownNameError
from tiny import Tiny, TinyElastic, mixed_config, output_of, run


def pipeline_of(transformer: nn.Module) -> FluxPipeline:
    """FLUX's own pipeline, for latents and ready prompt embeddings."""
    pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: FluxPipeline, prompt: int = 0, guided: bool = False, **options: Any) -> Tensor:
    """Latents of two images from seeded noise; the prompt is a seed too."""
    embeds = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(prompt))
    arguments = {"prompt_embeds": embeds, "pooled_prompt_embeds": embeds[:, 0, :10]}
    if guided:
        arguments |= {
            "negative_prompt_embeds": embeds.flip(1),
            "negative_pooled_prompt_embeds": embeds[:, 1, :10],
            "true_cfg_scale": 3.0,
        }
    noise = torch.Generator().manual_seed(5)
    return pipe(
        height=64, width=64, num_inference_steps=4, generator=noise, output_type="latent", **arguments | options
    ).images


class TestPipeline:
    def test_the_pipeline_is_untouched(self, tiny_flux: Tiny) -> None:
        pipe = pipeline_of(tiny_flux.transformer)
        dense = generate(pipe)
        elastic = elasticize(pipe)
        assert elastic.transformer is pipe.transformer
        elastic.force(Plan([[True] * tiny_flux.blocks] * 4))
        assert torch.equal(generate(pipe), dense)
        assert elastic.trace.array("keep").shape == (4, tiny_flux.blocks, 2)
        restore(pipe)
        assert torch.equal(generate(pipe), dense)

    @pytest.mark.parametrize("guided", [False, True])
    def test_images_do_not_depend_on_what_came_before(self, routed_flux: TinyElastic, guided: bool) -> None:
        pipe, elastic = pipeline_of(routed_flux.transformer), routed_flux.elastic
        expected = []
        for prompt in (0, 1):
            elastic.reset()
            expected.append(generate(pipe, prompt, guided))
        assert elastic.trace.reuse_rate > 0
        assert len(elastic.trace.branches) == 1 + guided
        elastic.reset()

        class Stop(Exception):
            pass

        def stop(pipe: FluxPipeline, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
            raise Stop

        for prompt in (0, 1, 0):
            assert torch.equal(generate(pipe, prompt, guided), expected[prompt])
            with pytest.raises(Stop):
                generate(pipe, 1 - prompt, guided, callback_on_step_end=stop)
        assert elastic.cache_bytes > 0
        assert torch.equal(generate(pipe, 0, guided), expected[0])
        assert elastic.cache_bytes == 0  # the pipeline's end frees it


class TestElasticize:
    def test_twice_is_once(self, tiny_flux: Tiny) -> None:
        first = elasticize(tiny_flux.transformer, mixed_config())
        second = elasticize(tiny_flux.transformer)
        assert first is not second
        inputs = tiny_flux.inputs(2)
        assert torch.equal(output_of(tiny_flux.transformer, inputs), output_of(tiny_flux.dense, inputs))
        assert len(second.trace) == 2 * tiny_flux.blocks
        assert not first.trace

    def test_restore_without_elasticize_is_nothing(self, tiny_flux: Tiny) -> None:
        restore(tiny_flux.transformer)
        restore(pipeline_of(tiny_flux.transformer))
        assert not hasattr(tiny_flux.transformer, "_diffusers_hook")

    def test_the_callers_config_is_not_changed(self, tiny_flux: Tiny) -> None:
        config = ElasticConfig()
        elasticize(tiny_flux.transformer, config).tau = 0.7
        assert config.tau == 0.5

    def test_other_hooks_stay(self, tiny_flux: Tiny) -> None:
        from diffusers.hooks import HookRegistry, ModelHook

        class Doubled(ModelHook):
            def post_forward(self, module: nn.Module, output: Any) -> Any:
                return tuple(2 * out for out in output)

        block = tiny_flux.transformer.transformer_blocks[0]
        HookRegistry.check_if_exists_or_initialize(block).register_hook(Doubled(), "doubled")
        inputs = tiny_flux.inputs(1)
        before = output_of(tiny_flux.transformer, inputs)
        elasticize(tiny_flux.transformer)
        assert torch.equal(output_of(tiny_flux.transformer, inputs), before)
        restore(tiny_flux.transformer)
        assert torch.equal(output_of(tiny_flux.transformer, inputs), before)
        assert list(block._diffusers_hook.hooks) == ["doubled"]

    @pytest.mark.parametrize("value", [nn.Linear(2, 2), "a path", None])
    def test_not_a_known_transformer(self, value: Any) -> None:
        message = "no backbone fits a Linear; transformers known: .*FluxTransformer2DModel"
        with pytest.raises(BackboneError, match=message if isinstance(value, nn.Module) else "expected a diffusers"):
            elasticize(value)

    def test_unknown_preset(self, tiny_flux: Tiny) -> None:
        with pytest.raises(UnknownNameError, match=r"unknown preset 'fluxx'.*Did you mean 'flux'"):
            elasticize(tiny_flux.transformer, "fluxx")

    def test_always_open_names_a_block_that_is_not_there(self, tiny_flux: Tiny) -> None:
        with pytest.raises(ConfigError, match="always_open names block 9; the transformer has 4 blocks"):
            elasticize(tiny_flux.transformer, ElasticConfig(always_open=(9,)))
        assert not hasattr(tiny_flux.transformer.transformer_blocks[0], "_diffusers_hook")


class TestSettings:
    def test_tau_zero_opens_all_and_above_one_is_refused(self, routed_flux: TinyElastic) -> None:
        elastic, inputs = routed_flux.elastic, routed_flux.inputs(4)
        output_of(routed_flux.transformer, inputs)
        assert 0 < elastic.trace.open_rate < 1
        elastic.tau = 0.0
        output_of(routed_flux.transformer, inputs)
        assert elastic.trace.open_rate == 1
        with pytest.raises(ConfigError, match=r"tau = 1\.5"):
            elastic.tau = 1.5
        assert elastic.tau == 0.0

    def test_a_misspelt_setting_is_an_error(self, routed_flux: TinyElastic) -> None:
        with pytest.raises(AttributeError):
            routed_flux.elastic.guidence_from = 0.5  # type: ignore[attr-defined]

    def test_the_config_is_turned_not_replaced(self, routed_flux: TinyElastic) -> None:
        with pytest.raises(AttributeError):
            routed_flux.elastic.config = ElasticConfig()  # type: ignore[misc]

    def test_delta_and_k_steer_reuse(self, routed_flux: TinyElastic) -> None:
        elastic, steps = routed_flux.elastic, routed_flux.steps(4, 3)
        rates = []
        for delta, uses in ((0.5, 9), (0.5, 0), (0.0, 9)):
            elastic.delta, elastic.max_reuse = delta, uses
            elastic.reset()
            run(routed_flux.transformer, steps)
            rates.append(elastic.trace.reuse_rate)
        assert rates[0] > 0.3
        assert rates[1:] == [0, 0]

    def test_losses_need_a_training_forward(self, tiny_flux: Tiny) -> None:
        elastic = elasticize(tiny_flux.transformer)
        with pytest.raises(ConfigError, match="call train_mode"):
            elastic.losses()

    def test_losses_and_logs_agree(self, routed_flux: TinyElastic) -> None:
        elastic = routed_flux.elastic
        elastic.train_mode()
        output_of(routed_flux.transformer, routed_flux.inputs(4))
        budget = elastic.losses()
        assert {k: v for k, v in budget.logs.items() if k != "budget_loss"} == elastic.routing_logs()

    def test_training_and_inference_report_the_same_flops(self, routed_flux: TinyElastic) -> None:
        elastic, inputs = routed_flux.elastic, routed_flux.inputs(4)
        elastic.train_mode()
        output_of(routed_flux.transformer, inputs)
        trained = elastic.routing_logs()
        elastic.eval_mode()
        output_of(routed_flux.transformer, inputs)
        trace = elastic.trace
        blocks = sum(t.flops for t in trace.values()) - sum(min_flops(trace))
        assert trained["keep/open_rate"] == pytest.approx(trace.open_rate)
        assert trained["width/mean"] == pytest.approx(trace.mean_width)
        assert trained["flops/share"] == pytest.approx(blocks / trace.flops_dense, rel=1e-5)


def min_flops(trace: elastic_dit.Trace) -> list[float]:
    """The routers' FLOPs, which a skipped block spends too."""
    skipped = {taken.flops for taken in trace.values() if not taken.keep}
    assert len(skipped) == 1
    return [skipped.pop()] * len(trace)


def test_summary(routed_flux: TinyElastic, tiny_flux: Tiny) -> None:
    assert "nothing has run yet" in elasticize(tiny_flux.transformer).summary()
    run(routed_flux.transformer, routed_flux.steps(2, 3))
    text = routed_flux.elastic.summary()
    assert "4 blocks x 3 steps x 2 samples" in text
    assert f"{routed_flux.elastic.trace.open_rate:.1%} open" in text
    assert "of dense" in text


def test_an_import_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken package below, as a torch without its parts, raises what Python would not show."""

    def broken(home: str) -> None:
        raise AttributeError("module 'triton' has no attribute 'language'")

    monkeypatch.delitem(vars(elastic_dit), "ElasticModel", raising=False)
    monkeypatch.setattr(elastic_dit, "import_module", broken)
    with pytest.raises(ImportError, match="elastic_dit.elastic_model could not be imported: module 'triton'"):
        from elastic_dit import ElasticModel  # noqa: F401
