"""Settings of diffusers' own classes that change what reaches a block."""

import copy
from typing import Any

import torch

from elastic_dit import elasticize
from elastic_dit.backbones import Backbone, backbones
from reference import OneSample, by_routers
from tiny import Tiny, mixed_config, run, scatter_routers


def variant(name: str, changes: dict[str, Any], more: dict[str, Any]) -> Tiny:
    """A backbone's tiny transformer with other settings and inputs."""
    backbone: Backbone = backbones[name]
    tiny = Tiny(backbone)
    torch.manual_seed(0)
    settings = {key: value for key, value in tiny.transformer.config.items() if not key.startswith("_")}
    transformer = type(tiny.transformer)(**settings | changes).eval()
    plain = tiny._inputs
    tiny.transformer = transformer
    tiny.dense = copy.deepcopy(transformer)

    def inputs(batch: int, seed: int, size: int) -> dict[str, Any]:
        given = plain(batch, seed=seed, size=size)
        return given | {key: make(given) for key, make in more.items()}

    tiny._inputs = inputs
    return tiny


def check(tiny: Tiny) -> None:
    """Three samples together, by routers, equal each alone by the equations."""
    steps = tiny.steps(3, 2)
    elastic = elasticize(tiny.transformer, mixed_config())
    scatter_routers(elastic, tiny.inputs(6, seed=11))
    outputs = run(tiny.transformer, steps)
    choose = by_routers(elastic.stack.state_dict(), tiny.backbone, elastic.config)
    for row in range(3):
        alone = OneSample(tiny.dense, tiny.backbone, choose, elastic.config)
        expected = alone.run([tiny.row(inputs, row) for inputs in steps])
        for mine, one in zip(outputs, expected, strict=True):
            torch.testing.assert_close(mine[row : row + 1], one, rtol=1e-3, atol=1e-4)
    assert 0 < elastic.trace.open_rate < 1


def test_flux_with_distilled_guidance() -> None:
    check(variant("flux", {"guidance_embeds": True}, {"guidance": lambda given: torch.full_like(given["timestep"], 3)}))


def test_wan_with_a_timestep_per_token() -> None:
    """Wan 2.2 image to video: the first frame's tokens are at timestep 0."""

    def per_token(given: dict[str, Any]) -> torch.Tensor:
        _, _, frames, height, width = given["hidden_states"].shape
        timestep = given["timestep"][:, None].repeat(1, frames * height * width // 4)
        timestep[:, : height * width // 4] = 0
        return timestep

    check(variant("wan", {}, {"timestep": per_token}))


def test_qwen_image_with_clean_condition_tokens() -> None:
    """Qwen-Image-Edit 2511: half of the timestep embedding is at 0, for the tokens of the given image."""
    pairs = {"img_shapes": lambda given: [[shapes[0], shapes[0]] for shapes in given["img_shapes"]]}
    twice = {"hidden_states": lambda given: given["hidden_states"].repeat(1, 2, 1)}
    check(variant("qwen-image", {"zero_cond_t": True}, pairs | twice))


def test_sd3_with_dual_attention() -> None:
    check(variant("sd3", {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"}, {}))
