"""The emoji data: scenes, captions, splits and shards, on 24 real sprites and on painted ones."""

import io
import json
import random
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from elastic_dit.errors import DataError
from elastic_dit.training.data import emoji
from elastic_dit.training.data import prepare as prepare_module
from elastic_dit.training.data.compose import (
    TAG_WEIGHTS,
    Pool,
    compose_scene,
    compose_single,
    is_reserved,
)
from elastic_dit.training.data.english import is_countable, plural, with_article
from elastic_dit.training.data.packages import NAMES, PACKAGES, STYLES
from elastic_dit.training.data.prepare import prepare
from elastic_dit.training.data.scenes import (
    COLORS,
    TINTS,
    Background,
    Scene,
    SceneObject,
    caption,
    render,
    repaint,
)
from elastic_dit.training.data.sprites import (
    Concept,
    Sprite,
    Sprites,
    read_sprites,
    save_sprites,
    split_of,
)
from emoji import EVERYDAY_SPRITES

FIXTURE = Path(__file__).parents[2] / "data" / "sprites"


@pytest.fixture(scope="module")
def real() -> Sprites:
    return read_sprites(FIXTURE)


@pytest.fixture(scope="module")
def pool(real: Sprites) -> Pool:
    concepts = {sprite.concept.code: sprite.concept for sprite in real.values()}
    train = [concept for concept in concepts.values() if split_of(concept) == "train"]
    return Pool(real, tuple(STYLES), train)


def disc(color: tuple[int, int, int], side: int = 96) -> Image.Image:
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((0, 0, side - 1, side - 1), fill=(*color, 255))
    return image


def one_disc_scene(**changes: Any) -> tuple[Scene, Sprites]:
    concept = Concept("1", "ball", "objects", ("ball",), ())
    item = SceneObject("1", "ball", ("ball",), (), "3d", None, False, (0.25, 0.25, 0.75, 0.75))
    scene = Scene("single_object", "3d", (item,), Background("white"), **changes)
    return scene, {("1", "3d"): Sprite(concept, "3d", disc((200, 0, 0)))}


def read_shards(folder: Path) -> dict[str, bytes]:
    """Member name -> bytes over all shards of a split."""
    members: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            members |= {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore
    return members


def test_render_puts_the_sprite_in_its_box_without_a_fringe() -> None:
    scene, sprites = one_disc_scene()
    pixels = np.asarray(render(scene, sprites, 64)).astype(int)  # (64, 64, 3)
    assert pixels.shape == (64, 64, 3)
    assert tuple(pixels[32, 32]) == (200, 0, 0)
    assert (pixels[:15] == 255).all() and (pixels[:, 49:] == 255).all()
    # Straight (not premultiplied) resizing would darken the red channel along the edge.
    assert pixels[..., 0].min() >= 198
    assert len(np.unique(pixels[..., 1])) > 4, "the edge has to be smooth"


@pytest.mark.parametrize("texture", ["plain", "stripes", "dots", "gradient", "checker"])
@pytest.mark.parametrize("color", COLORS)
def test_every_background_keeps_its_colour(texture: Any, color: str) -> None:
    scene = Scene("single_object", "3d", (), Background(color, texture, 45.0))
    pixels = np.asarray(render(scene, {}, 32)).reshape(-1, 3).astype(float)
    assert np.abs(np.median(pixels, axis=0) - np.array(COLORS[color])).max() < 80
    assert (pixels.std(axis=0).max() > 0) == (texture != "plain")


@pytest.mark.parametrize("color", TINTS)
def test_repaint_gives_the_colour_and_keeps_the_shape(real: Sprites, color: str) -> None:
    sprite = real["1f34e", "twemoji"]
    painted = repaint(sprite.image, color)
    assert painted.getchannel("A").tobytes() == sprite.image.getchannel("A").tobytes()
    distances = {
        name: np.linalg.norm(np.subtract(Sprite(sprite.concept, "3d", painted).mean_rgb, rgb))
        for name, rgb in COLORS.items()
        if name in TINTS
    }
    assert min(distances, key=lambda name: distances[name]) == color


def test_a_missing_sprite_is_named() -> None:
    scene, _ = one_disc_scene()
    with pytest.raises(DataError, match=r"'ball' \(1\) in style '3d'"):
        render(scene, {}, 64)


@pytest.mark.parametrize("tag", TAG_WEIGHTS)
def test_composed_scenes_keep_their_promises(pool: Pool, tag: str) -> None:
    for seed in range(60):
        scene = compose_scene(pool, random.Random(seed), tag)
        assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene
        first, last = scene.objects[0], scene.objects[-1]
        for item in scene.objects:
            left, top, right, bottom = item.box
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
            assert item.style == scene.style and (item.code, item.style) in pool.sprites
        if tag == "counting":
            assert len(scene.objects) == scene.count >= 2
        if tag in ("colors", "color_attr"):
            assert all(item.repainted and item.color in TINTS for item in scene.objects)
            assert not any(is_reserved(i.names[0], i.color or "") for i in scene.objects)
        if tag == "color_attr":
            assert first.color != last.color
        if tag not in ("counting", "colors"):
            assert len(scene.objects) == scene.count + 1 and first.code != last.code
            assert not is_reserved(first.names[0], last.names[0])
        match scene.relation:
            case "left of":
                assert first.box[2] <= last.box[0]
            case "right of":
                assert first.box[0] >= last.box[2]
            case "above":
                assert first.box[3] <= last.box[1]
            case "below":
                assert first.box[1] >= last.box[3]
            case None:
                assert tag != "position"


def test_single_subjects_fill_the_frame(real: Sprites) -> None:
    for seed in range(60):
        rng = random.Random(seed)
        (item,) = compose_single(rng.choice(list(real.values())), real, rng).objects
        left, top, right, bottom = item.box
        assert left >= 0 and top >= 0 and right <= 1 and bottom <= 1
        assert 0.749 <= max(right - left, bottom - top) <= 0.951


@pytest.mark.parametrize("tag", TAG_WEIGHTS)
def test_captions_name_every_object_number_and_paint(pool: Pool, tag: str) -> None:
    for seed in range(100):
        rng = random.Random(seed)
        scene = compose_scene(pool, rng, tag)
        text = caption(scene, rng)
        for item in scene.objects:
            names = [form for name in item.names for form in (name, plural(name))]
            assert any(name in text for name in names), text
            assert not item.repainted or f"{item.color} " in text
        if scene.count > 1:
            assert ("two", "three", "four")[scene.count - 2] in text
        if scene.relation:
            side = {"above": ("above", "over"), "below": ("below", "under")}
            assert any(word in text for word in side.get(scene.relation, (scene.relation,))), text


def test_captions_are_sometimes_terse_and_sometimes_say_style_and_background(pool: Pool) -> None:
    rng = random.Random(0)
    dog = pool.sprites["1f436", "noto"]
    texts = {caption(compose_single(dog, pool.sprites, rng), rng) for _ in range(400)}
    assert len(texts) > 150
    assert "dog" in texts
    assert any("noto" in text and "background" in text for text in texts)


def test_scenes_depend_on_the_random_generator_alone(pool: Pool) -> None:
    def draw(seed: int) -> tuple[Scene, str, bytes]:
        rng = random.Random(seed)
        scene = compose_scene(pool, rng)
        return scene, caption(scene, rng), render(scene, pool.sprites, 32).tobytes()

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_reserved_pools_show_reserved_pairings_only(pool: Pool) -> None:
    reserved = Pool(pool.sprites, pool.styles, pool.common, reserved=True)
    for seed in range(40):
        scene = compose_scene(reserved, random.Random(seed))
        names = [item.names[0] for item in scene.objects]
        other = names[-1] if len(names) > 1 else scene.objects[0].color
        assert scene.novelty == "composition"
        assert other is not None and is_reserved(names[0], other)
    with pytest.raises(DataError, match="give more sprites"):
        compose_scene(Pool(pool.sprites, pool.styles, pool.common[:1]), random.Random(0), "position")


def test_splits_are_fixed_and_keep_namesakes_together() -> None:
    def concept(code: str, *names: str) -> Concept:
        return Concept(code, names[-1], "animals-nature", names, ())

    many = [concept(str(i), f"thing {i}") for i in range(4000)]
    shares = [[split_of(c) for c in many].count(split) / 4000 for split in ("train", "val", "test")]
    assert shares == pytest.approx([0.90, 0.04, 0.06], abs=0.015)
    assert split_of(concept("a", "yak", "yak face"), 7) == split_of(concept("b", "yak"), 7)
    assert len({split_of(concept("a", "yak"), seed) for seed in range(300)}) == 3
    assert {split_of(concept("a", "dog"), seed) for seed in range(60)} == {"train"}


@pytest.mark.parametrize(
    ("name", "many", "one"),
    [
        ("red apple", "red apples", "a red apple"),
        ("glass of milk", "glasses of milk", "a glass of milk"),
        ("umbrella", "umbrellas", "an umbrella"),
        ("unicorn", "unicorns", "a unicorn"),
        ("mouse", "mice", "a mouse"),
        ("strawberry", "strawberries", "a strawberry"),
        ("person surfing", "people surfing", "a person surfing"),
        ("glasses", "glasses", "glasses"),
        ("bread", "bread", "bread"),
        ("octopus", "octopuses", "an octopus"),
    ],
)
def test_english(name: str, many: str, one: str) -> None:
    assert (plural(name), with_article(name)) == (many, one)
    assert is_countable(name) == (many != name)


def test_prepare_writes_shards_that_hold_what_they_say(tmp_path: Path) -> None:
    counts = prepare(tmp_path / "out", FIXTURE, size=32, scenes=40)
    assert counts == {"train": 6 * 3 * 4 + 40, "val": 6 + 40, "test": 6 + 40}
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert about["samples"] == counts and about["versions"][NAMES.name] == NAMES.version
    notice = (tmp_path / "out" / "NOTICE.md").read_text()
    assert all(word in notice for word in ("Microsoft", "Apache-2.0", "CC-BY-4.0", "Twitter, Inc"))
    shown: dict[str, set[str]] = {}
    for split, count in counts.items():
        members = read_shards(tmp_path / "out" / split)
        assert len(members) == 3 * count
        assert {"000000000.webp", "000000000.txt", "000000000.json"} <= members.keys()
        image = Image.open(io.BytesIO(members["000000000.webp"]))
        assert (image.size, image.mode, image.format) == ((32, 32), "RGB", "WEBP")
        scenes = [Scene.from_json(json.loads(d)) for n, d in members.items() if n.endswith("json")]
        shown[split] = {item.code for scene in scenes for item in scene.objects}
        if split == "test":
            assert {scene.novelty for scene in scenes} == {"concept", "composition"}
    held_out = {code for split in ("val", "test") for code in about["concepts"][split]}
    assert len(held_out) == 2 and shown["train"] == set(about["concepts"]["train"])
    assert not shown["train"] & held_out
    assert set(about["concepts"]["val"]) <= shown["val"] - shown["test"]


def test_chosen_concepts_alone_and_none_held_out(tmp_path: Path) -> None:
    counts = prepare(tmp_path, FIXTURE, size=32, scenes=8, variants=1, concepts=EVERYDAY_SPRITES)
    about = json.loads((tmp_path / "dataset.json").read_text())
    known = {"banana", "red apple", "balloon", "cat", "dog", "red heart"}  # without racing car and school
    assert {split: set(found.values()) for split, found in about["concepts"].items()} == {
        "train": known,
        "val": set(),
        "test": set(),
    }
    assert counts == {"train": 6 * 3 + 8, "val": 6 * 3 * 2 + 4, "test": 6 * 3 * 2 + 4}
    novelty = {split: set() for split in counts}
    for split in counts:
        for name, data in read_shards(tmp_path / split).items():
            if name.endswith(".json"):
                novelty[split].add(json.loads(data)["novelty"])
    assert novelty == {"train": {"seen"}, "val": {"seen"}, "test": {"seen", "composition"}}


def test_chosen_styles_alone(tmp_path: Path) -> None:
    counts = prepare(tmp_path, FIXTURE, size=32, scenes=4, variants=1, concepts=EVERYDAY_SPRITES, styles=["twemoji"])
    assert counts["train"] == 6 + 4
    members = read_shards(tmp_path / "train")
    scenes = [Scene.from_json(json.loads(data)) for name, data in members.items() if name.endswith("json")]
    assert {item.style for scene in scenes for item in scene.objects} == {"twemoji"}
    with pytest.raises(DataError, match="holds another data set"):
        prepare(tmp_path, FIXTURE, size=32, scenes=4, variants=1, concepts=EVERYDAY_SPRITES)


def test_unknown_concepts_and_styles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no concepts unicorn; expected some of: balloon, banana"):
        prepare(tmp_path, FIXTURE, concepts=["banana", "unicorn"])
    with pytest.raises(DataError, match="no styles at all; expected some of: 3d, noto, twemoji"):
        prepare(tmp_path, FIXTURE, styles=[])


def test_prepare_resumes_and_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "SHARD", 30)
    prepare(tmp_path / "whole", FIXTURE, size=32, scenes=20)
    drawn = 0

    def fail_in_second_shard(*args: Any) -> Image.Image:
        nonlocal drawn
        drawn += 1
        if drawn == 45:
            raise KeyboardInterrupt
        return render(*args)

    monkeypatch.setattr(prepare_module, "render", fail_in_second_shard)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "cut", FIXTURE, size=32, scenes=20)
    train = tmp_path / "cut" / "train"
    assert [path.name for path in sorted(train.glob("*.tar"))] == ["000000.tar"]
    finished = (train / "000000.tar").stat().st_mtime_ns
    drawn = 100
    counts = prepare(tmp_path / "cut", FIXTURE, size=32, scenes=20)
    assert (train / "000000.tar").stat().st_mtime_ns == finished
    assert drawn - 100 == sum(counts.values()) - 30
    whole, cut = (
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (tmp_path / "whole", tmp_path / "cut")
    )
    assert whole == cut


def test_prepare_refuses_to_mix_data_sets_and_bad_numbers(tmp_path: Path) -> None:
    prepare(tmp_path, FIXTURE, size=32, scenes=2)
    with pytest.raises(DataError, match="another data set"):
        prepare(tmp_path, FIXTURE, size=32, scenes=2, seed=1)
    with pytest.raises(DataError, match="size=8"):
        prepare(tmp_path, FIXTURE, size=8)


def test_sprites_survive_saving(tmp_path: Path, real: Sprites) -> None:
    save_sprites(real, tmp_path)
    again = read_sprites(tmp_path)
    assert len(real) == 24 and again.keys() == real.keys()
    for key, sprite in real.items():
        assert again[key].concept == sprite.concept
        assert again[key].image.tobytes() == sprite.image.tobytes()
    (tmp_path / "noto" / "1f436.webp").unlink()
    with pytest.raises(DataError, match=r"cannot read the sprites.*Save them again"):
        read_sprites(tmp_path)


def write_tarball(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def entry(code: str, label: str, group: int) -> dict[str, Any]:
    return {"hexcode": code, "label": label, "group": group, "tags": ["tag", label]}


@pytest.fixture
def tarballs(tmp_path: Path) -> Path:
    """Four small tarballs laid out as those of npm."""
    data = [
        entry("1F436", "dog face", 3),
        entry("2764-FE0F", "red heart", 0),
        entry("1F34E", "red apple", 4),
        entry("1F550", "one o’clock", 5),
        entry("1F1E6", "flag", 9),
    ]
    files = {"package/en/data.json": json.dumps(data).encode()}
    write_tarball(tmp_path / NAMES.tarball, files)
    picture = Image.new("RGBA", (200, 200))
    picture.paste(disc((0, 90, 200), 160), (20, 20))
    for style, package in STYLES.items():
        data_io = io.BytesIO()
        picture.save(data_io, "png")
        codes = ["1f436", "2764-fe0f", "1f550", "1f1e6"] + ["1f34e"] * (style != "noto")
        files = {f"{package.pictures}{code}.png": data_io.getvalue() for code in codes}
        write_tarball(tmp_path / package.tarball, files)
    return tmp_path


def test_emoji_are_joined_cleaned_and_trimmed(tarballs: Path) -> None:
    emoji.fetch(tarballs)  # all there: nothing to do, no npm needed
    sprites = emoji.load_emoji(tarballs, max_side=64)
    assert {code for code, _ in sprites} == {"1f436", "2764"}, "in all styles, no clock, no flag"
    dog = sprites["1f436", "3d"]
    assert dog.concept.names == ("dog", "dog face") and dog.concept.tags == ("tag",)
    assert dog.image.size == (64, 64) and dog.image.getpixel((32, 32)) == (0, 90, 200, 255)


def test_fetch_says_when_npm_is_missing_or_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji.shutil, "which", lambda _: None)
    with pytest.raises(DataError, match=r"npm was not found.*npm pack emojibase-data@17\.0\.0"):
        emoji.fetch(tmp_path)
    monkeypatch.setattr(emoji.shutil, "which", lambda _: "npm")
    failed = subprocess.CompletedProcess([], 1, "", "npm error\nnpm error network down\n")
    monkeypatch.setattr(emoji.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DataError, match="network down"):
        emoji.fetch(tmp_path)


def test_a_damaged_tarball_is_named(tarballs: Path) -> None:
    for package in PACKAGES:
        whole = (tarballs / package.tarball).read_bytes()
        (tarballs / package.tarball).write_bytes(whole[:40])
        with pytest.raises(DataError, match=f"cannot read .*{package.tarball}"):
            emoji.load_emoji(tarballs)
        (tarballs / package.tarball).write_bytes(whole)


def test_a_foreign_json_is_not_a_scene() -> None:
    with pytest.raises(DataError, match="not a scene"):
        Scene.from_json({"prompt": "a dog"})
