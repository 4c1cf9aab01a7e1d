"""Eq. 1 and 2: noisy samples, velocities and losses against formulas written out by hand."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from elastic_dit.training.config import FlowConfig
from elastic_dit.training.flow import NoisyBatch, draw, flow_loss


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def clean() -> torch.Tensor:
    return torch.randn(64, 5, 3, generator=generator(7))


def test_sample_and_velocity_lie_on_one_line(clean: torch.Tensor) -> None:
    """x_t = (1-t) x_0 + t x_1 and v = x_1 - x_0, so x_t - t v = x_0 and x_t + (1-t) v = x_1."""
    batch = draw(clean, FlowConfig(), generator())
    t = batch.sigma.view(-1, 1, 1)
    torch.testing.assert_close(batch.tokens - t * batch.velocity, clean, atol=1e-5, rtol=1e-5)
    noise = batch.tokens + (1 - t) * batch.velocity
    assert abs(noise.mean().item()) < 0.1
    assert noise.std().item() == pytest.approx(1, abs=0.1)
    assert abs((noise * clean).mean().item()) < 0.1  # noise knows nothing of the data


def test_the_schedulers_euler_steps_follow_the_line(clean: torch.Tensor) -> None:
    """Eq. 1: with the true velocity, diffusers' sampler walks from noise to data."""
    batch = draw(clean, FlowConfig(), generator())
    noise = clean + batch.velocity
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    x = noise
    for index, timestep in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[index]
        torch.testing.assert_close(x, (1 - sigma) * clean + sigma * noise, atol=1e-5, rtol=1e-5)
        x = scheduler.step(batch.velocity, timestep, x, return_dict=False)[0]
    torch.testing.assert_close(x, clean, atol=1e-5, rtol=1e-5)


def test_a_draw_depends_on_its_generator_alone(clean: torch.Tensor) -> None:
    first = draw(clean, FlowConfig(), generator())
    torch.manual_seed(123)
    second, other = draw(clean, FlowConfig(), generator()), draw(clean, FlowConfig(), generator(1))
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.sigma, second.sigma)
    assert not torch.equal(first.sigma, other.sigma)


def quantiles(config: FlowConfig) -> list[float]:
    sigma = draw(torch.zeros(20_000, 1, 1), config, generator()).sigma
    assert sigma.dtype == torch.float32
    assert sigma.min() >= 0
    assert sigma.max() <= 1
    return sigma.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()


def test_noise_levels_are_uniform_by_default() -> None:
    assert quantiles(FlowConfig()) == pytest.approx([0.1, 0.5, 0.9], abs=0.02)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 0.5)])
def test_noise_levels_are_logit_normal(mean: float, std: float) -> None:
    """u = sigmoid(mean + std z) indexes falling noise levels: sigma = 1 - u."""
    z = 1.2816  # the normal's 90 % quantile
    expected = [1 - 1 / (1 + math.exp(-(mean + std * q))) for q in (z, 0, -z)]
    config = FlowConfig(timestep_sampling="logit_normal", logit_mean=mean, logit_std=std)
    assert quantiles(config) == pytest.approx(expected, abs=0.02)


def test_noise_levels_of_the_mode_sampler() -> None:
    """u = 1 - v - s (cos^2(pi v / 2) - 1 + v) for uniform v, and sigma = 1 - u."""
    scale = 0.8
    v = torch.linspace(0, 1, 20_001)
    u = 1 - v - scale * (torch.cos(math.pi * v / 2) ** 2 - 1 + v)
    expected = (1 - u).quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    assert quantiles(FlowConfig(timestep_sampling="mode", mode_scale=scale)) == pytest.approx(expected, abs=0.02)


def test_loss_is_the_mean_squared_error_of_each_sample() -> None:
    velocity = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    batch = NoisyBatch(torch.zeros(2, 2, 2), velocity, torch.tensor([0.2, 0.7]))
    predicted = torch.tensor([[[1.0, 2.0], [3.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]])
    assert flow_loss(predicted, batch, FlowConfig()).tolist() == [1.0, 1.0]  # 2^2 / 4, and 4 x 1 / 4


@pytest.mark.parametrize(
    ("weighting", "weight"),
    [
        ("sigma_sqrt", lambda s: s**-2),
        ("cosmap", lambda s: 2 / (math.pi * (1 - 2 * s + 2 * s**2))),
    ],
)
def test_loss_weights(weighting: str, weight: object) -> None:
    assert callable(weight)
    sigma = torch.tensor([0.2, 0.7])
    batch = NoisyBatch(torch.zeros(2, 3, 1), torch.ones(2, 3, 1), sigma)
    loss = flow_loss(torch.zeros(2, 3, 1), batch, FlowConfig(loss_weighting=weighting))
    assert loss.tolist() == pytest.approx([weight(0.2), weight(0.7)], rel=1e-5)


def test_loss_is_float32_and_reaches_a_half_precision_prediction() -> None:
    batch = NoisyBatch(torch.zeros(1, 2, 2), torch.full((1, 2, 2), 300.0), torch.tensor([0.5]))
    predicted = torch.zeros(1, 2, 2, dtype=torch.float16, requires_grad=True)
    loss = flow_loss(predicted, batch, FlowConfig())
    assert loss.dtype == torch.float32
    assert loss.item() == 90_000  # beyond float16
    loss.backward()
    assert predicted.grad is not None
    assert predicted.grad.abs().min() > 0


def test_draw_keeps_the_dtype_of_its_data() -> None:
    batch = draw(torch.ones(2, 3, 4, dtype=torch.bfloat16), FlowConfig(), generator())
    assert batch.tokens.dtype == batch.velocity.dtype == torch.bfloat16
    assert batch.sigma.dtype == torch.float32
