"""The sprite detector: its geometry, its loss, its file, and what the shipped one sees in scenes it never saw."""

import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from elastic_dit.errors import CheckpointError
from elastic_dit.evaluation.detector_training import (
    color_of,
    detection_loss,
    flipped,
    recolored,
    spoiled,
    targets_of,
    train_detector,
)
from elastic_dit.evaluation.judge import DETECTOR
from elastic_dit.evaluation.scene_eval import Prompt, is_right, judge_scenes
from elastic_dit.evaluation.sprite_detector import Maps, SpriteDetector, mirrored, pixels_of
from elastic_dit.models import shipped_judge
from elastic_dit.training.data.compose import Pool, compose_scene, compose_single
from elastic_dit.training.data.scenes import TAGS, Scene, render
from elastic_dit.training.data.sprites import EVERYDAY, Sprites, read_sprites

SPRITES = Path(__file__).parents[1] / "data" / "sprites"
NATURAL = {("balloon", "noto"): "red", ("balloon", "twemoji"): "red"}


@pytest.fixture(scope="module")
def sprites() -> Sprites:
    return {key: sprite for key, sprite in read_sprites(SPRITES).items() if sprite.concept.label in EVERYDAY}


@pytest.fixture(scope="module")
def scenes(sprites: Sprites) -> list[Scene]:
    """Forty of each task."""
    rng = random.Random(7)
    concepts = list({sprite.concept.code: sprite.concept for sprite in sprites.values()}.values())
    pool = Pool(sprites, ("3d", "noto", "twemoji"), concepts)
    singles = [compose_single(rng.choice(list(sprites.values())), sprites, rng) for _ in range(40)]
    return singles + [compose_scene(pool, rng, tag) for tag in TAGS[1:] for _ in range(40)]


@pytest.fixture(scope="module")
def images(scenes: list[Scene], sprites: Sprites) -> list[Image.Image]:
    return [render(scene, sprites, 64) for scene in scenes]


@pytest.fixture(scope="module")
def blank(sprites: Sprites) -> SpriteDetector:
    """Untrained."""
    return SpriteDetector(sorted({sprite.concept.label for sprite in sprites.values()}), ("3d", "noto", "twemoji"), 4)


def as_maps(scene: Scene, detector: SpriteDetector, mirror: bool = False) -> Maps:
    """The maps of a network that is always right."""
    targets = targets_of(scene, detector, NATURAL)
    if mirror:
        _, targets = flipped(torch.zeros(1, 3, 64, 64), targets, torch.tensor([True]))
    words = [
        torch.nn.functional.one_hot(index.clamp(min=0), count).permute(0, 3, 1, 2).float()
        for index, count in ((targets.color, 9), (targets.style, 3))
    ]
    return Maps(torch.logit(targets.heat, eps=1e-4)[0], words[0][0], words[1][0], targets.box[0])


def test_right_maps_are_read_as_the_scene(scenes: list[Scene], blank: SpriteDetector) -> None:
    for scene in scenes:
        found = sorted(blank._peaks(as_maps(scene, blank)), key=lambda one: one.box)
        objects = sorted(scene.objects, key=lambda item: item.box)
        for one, item in zip(found, objects, strict=True):
            assert one[:3] == (item.label, color_of(item, NATURAL), item.style)
            assert one.box == pytest.approx(item.box, abs=1e-4)
        assert is_right(scene, found)


def test_a_mirrored_scene_is_mirrored(scenes: list[Scene], blank: SpriteDetector) -> None:
    scene = next(scene for scene in scenes if scene.relation == "left of" and scene.count == 1)
    plain, mirrored = (list(blank._peaks(as_maps(scene, blank, mirror))) for mirror in (False, True))
    assert is_right(scene, plain) and not is_right(scene, mirrored)
    for one, other in zip(sorted(plain), sorted(mirrored), strict=True):
        assert other.box == pytest.approx((1 - one.box[2], one.box[1], 1 - one.box[0], one.box[3]), abs=1e-4)


def test_the_loss_is_least_for_right_maps(scenes: list[Scene], blank: SpriteDetector) -> None:
    wanted = targets_of(scenes[-1], blank, NATURAL)
    right = Maps(*(each[None] * scale for each, scale in zip(as_maps(scenes[-1], blank), (1, 20, 20, 1), strict=True)))
    assert detection_loss(right, wanted) < 0.1
    for name in Maps._fields:
        wrong = right._replace(**{name: getattr(right, name).flip(1)})
        assert detection_loss(wrong, wanted) > detection_loss(right, wanted) + 0.1


def test_other_hues_keep_all_but_the_color(
    scenes: list[Scene], images: list[Image.Image], blank: SpriteDetector
) -> None:
    torch.manual_seed(0)
    wanted, pixels = targets_of(scenes[-1], blank, NATURAL), pixels_of(images[-1:])
    same, kept = recolored(pixels, wanted, torch.tensor([False]))
    assert torch.equal(same, pixels) and torch.equal(kept.color, wanted.color)
    other, left = recolored(pixels, wanted, torch.tensor([True]))
    assert not torch.allclose(other, pixels)
    torch.testing.assert_close(other.mean(dim=1), pixels.mean(dim=1))  # brightness as it was
    assert (left.color == -1).all()
    assert all(torch.equal(getattr(left, name), getattr(wanted, name)) for name in ("heat", "style", "box"))


def test_spoiling_keeps_the_scene_in_place(images: list[Image.Image]) -> None:
    torch.manual_seed(0)
    pixels = pixels_of(images[:16])
    drawn = spoiled(pixels)
    assert drawn.shape == pixels.shape
    assert 0.01 < (drawn - pixels).abs().mean() < 0.3


def test_a_thing_of_a_paints_color_is_of_that_color(scenes: list[Scene]) -> None:
    balloons = [item for scene in scenes for item in scene.objects if item.label == "balloon"]
    plain = {item.style: color_of(item, NATURAL) for item in balloons if not item.repainted}
    assert plain == {"3d": None, "noto": "red", "twemoji": "red"}
    assert all(color_of(item, NATURAL) == item.color for item in balloons if item.repainted)


def test_an_image_and_its_mirror_image_are_seen_alike(images: list[Image.Image]) -> None:
    detector = SpriteDetector.load(shipped_judge() / DETECTOR)
    some = images[40::8]
    turned = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in some]
    for one, other in zip(detector.detect(some), detector.detect(turned), strict=True):
        assert len(one) == len(other)
        for seen, same in zip(sorted(one), sorted(other, key=lambda f: (f[:3], 1 - f.box[2])), strict=True):
            assert seen[:3] == same[:3]
            assert seen.score == pytest.approx(same.score, abs=1e-3)
            assert seen.box == pytest.approx((1 - same.box[2], same.box[1], 1 - same.box[0], same.box[3]), abs=1e-3)


def test_maps_of_a_mirror_image_are_turned_back(scenes: list[Scene], blank: SpriteDetector) -> None:
    maps = Maps(*(each[None] for each in as_maps(scenes[-1], blank)))
    again = mirrored(mirrored(maps))
    assert not torch.equal(mirrored(maps).heat, maps.heat)
    for one, other in zip(maps, again, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_training_learns_what_it_is_shown(images: list[Image.Image], scenes: list[Scene]) -> None:
    """A few scenes again and again, one width of network: most of them are then right."""
    some = slice(40, 72)
    detector = train_detector(images[some], scenes[some], NATURAL, epochs=60, batch=16)
    right = [is_right(scene, found) for scene, found in zip(scenes[some], detector.detect(images[some]), strict=True)]
    assert sum(right) >= 24


def test_the_file(blank: SpriteDetector, images: list[Image.Image], tmp_path: Path) -> None:
    with torch.no_grad():
        for parameter in blank.parameters():  # float16 is exact
            parameter.copy_(parameter.half())
    blank.save(tmp_path / "detector.safetensors")
    again = SpriteDetector.load(tmp_path / "detector.safetensors")
    assert (again.labels, again.styles) == (blank.labels, blank.styles)
    blank.eval()
    for a, b in zip(blank(pixels_of(images[:2])), again(pixels_of(images[:2])), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    with pytest.raises(CheckpointError, match="judge train"):
        SpriteDetector.load(tmp_path / "none.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="judge train"):
        SpriteDetector.load(tmp_path / "other.safetensors")


def test_the_shipped_detector_is_right_about_real_scenes(scenes: list[Scene], images: list[Image.Image]) -> None:
    """New scenes of six of its 42 things."""
    detector = SpriteDetector.load(shipped_judge() / DETECTOR)
    assert set(detector.labels) == EVERYDAY
    prompts = [Prompt("", scene, 0) for scene in scenes]
    results = judge_scenes(prompts, detector.detect(images))
    for tag in TAGS:
        assert sum(results[tag]) >= 0.97 * len(results[tag]) - 1, tag
