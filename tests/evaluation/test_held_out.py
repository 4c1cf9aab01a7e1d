"""Scenes with their images, and noise of a given level on them."""

import numpy as np
import torch

from elastic_dit.evaluation.held_out import NoisyPairs
from elastic_dit.training.data.scenes import TAGS, render
from elastic_dit.training.data.sprites import read_sprites
from studies import SIZE, SPRITES, Subject


def test_the_image_is_that_of_the_scene(studied: Subject) -> None:
    assert [one.prompt.scene.tag for one in studied.scenes] == [tag for tag in TAGS for _ in range(2)]
    sprites = read_sprites(SPRITES)
    for one in studied.scenes:
        drawn = render(one.prompt.scene, sprites, one.image.width)
        assert np.array_equal(np.array(drawn), np.array(one.image.convert("RGB"))), one.prompt.caption


def test_levels_differ_in_noise_alone(studied: Subject) -> None:
    pairs = NoisyPairs(studied.family, studied.scenes, SIZE, batch=5, seed=3)
    clean, half, noise = ([noisy for _, noisy in pairs.at(sigma)] for sigma in (0.0, 0.5, 1.0))
    assert [len(one.sigma) for one in half] == [5, 5, 2]
    for a, b, c in zip(clean, half, noise, strict=True):
        torch.testing.assert_close(b.tokens, (a.tokens + c.tokens) / 2)
        torch.testing.assert_close(b.velocity, c.tokens - a.tokens)
        assert torch.equal(a.velocity, c.velocity)
    encoded = studied.family.encode_images([one.image.resize((SIZE, SIZE)) for one in studied.scenes[:1]])
    assert clean[0].tokens[:1].shape == studied.family.pack(encoded).shape


def test_every_pair_has_its_own_text(studied: Subject) -> None:
    (arguments, _), *_ = NoisyPairs(studied.family, studied.scenes, SIZE, batch=5, seed=3).at(0.5)
    expected = studied.family.encode_prompts([one.prompt.caption for one in studied.scenes[:5]])
    torch.testing.assert_close(arguments["pooled_projections"], expected["pooled"])
