"""Write the emoji scenes as WebDataset shards: train, val and test, split by concept."""

import io
import json
import random
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from elastic_dit.errors import DataError
from elastic_dit.training.data.compose import Pool, compose_scene, compose_single
from elastic_dit.training.data.emoji import fetch, load_emoji
from elastic_dit.training.data.packages import PACKAGES, notice
from elastic_dit.training.data.scenes import Scene, caption, render
from elastic_dit.training.data.sprites import (
    INDEX,
    SPLITS,
    Concept,
    Split,
    Sprite,
    Sprites,
    read_sprites,
    split_of,
)

FORMAT = 3
"""To be raised when the same settings give other samples than before."""
SHARD = 2000
"""Samples in a shard."""
HELD_OUT_VARIANTS = 2
"""Images per sprite alone in val and test."""
HELD_OUT = 600
"""Composed scenes in val and in test (fewer when few scenes are asked for)."""


@dataclass(frozen=True)
class Job:
    """One sample to make: a sprite alone, or (sprite None) a composed scene of the pool."""

    pool: Pool
    sprite: Sprite | None = None
    plain: bool = False


def prepare(
    output: Path,
    sources: Path,
    *,
    size: int = 64,
    scenes: int = 24_000,
    variants: int = 4,
    concepts: Collection[str] | None = None,
    styles: Collection[str] | None = None,
    seed: int = 0,
) -> dict[Split, int]:
    """Write `output`/{train,val,test}/NNNNNN.tar, NOTICE.md and dataset.json.

    Each sample is a lossless webp of `size` px, a caption (.txt) and its scene (.json). Complete
    shards are kept, so a stopped run goes on where it was.

    Args:
        output: folder to write to.
        sources: folder for the npm tarballs, fetched when missing; or a folder of `save_sprites`.
        size: side of the images in px. Two of the three styles are drawn at 64 px: more is blurred.
        scenes: composed training scenes.
        variants: training images of each sprite alone.
        concepts: labels of the only concepts to show, which a small model learns in little time (`EVERYDAY`). None
            is held out: val and test show them in other scenes, test in pairings that training never shows. None:
            all there are, split into those of train, val and test.
        styles: the only styles; None: all.
        seed: of the split and of every random choice.

    Returns:
        The number of samples in each split.

    Raises:
        DataError: sizes out of range, concepts or styles that are not there, or another data set in the folder.
    """
    if size < 16 or scenes < 0:
        raise DataError(f"got size={size} and scenes={scenes}; expected size >= 16, scenes >= 0")
    output, sources = Path(output), Path(sources)
    sprites = load_sources(sources, max_side=max(128, size))
    if styles is not None:
        _refuse_unknown("styles", styles, {style for _, style in sprites})
        sprites = {key: sprite for key, sprite in sprites.items() if sprite.style in styles}
    split = _split(sprites, concepts, seed)
    jobs: dict[Split, list[Job]] = {name: _list_jobs(name, split, sprites, scenes, variants, seed) for name in SPLITS}
    counts: dict[Split, int] = {name: len(work) for name, work in jobs.items()}
    chosen = {"styles": sorted(styles)} if styles is not None else {}
    _describe(output, counts, split, size=size, scenes=scenes, variants=variants, seed=seed, **chosen)
    with Progress() as progress:
        for name, work in jobs.items():
            task = progress.add_task(name, total=len(work))
            for index in range(0, len(work), SHARD):
                path = output / name / f"{index // SHARD:06d}.tar"
                part = work[index : index + SHARD]
                if not path.exists():
                    rng = random.Random(f"{seed}/{name}/{index // SHARD}")
                    _write_shard(path, _samples(part, index, size, rng))
                progress.advance(task, len(part))
    return counts


def load_sources(sources: Path, max_side: int) -> Sprites:
    """The sprites of a folder: saved ones, or those of the emoji packages, which are fetched if missing."""
    if (sources / INDEX).exists():
        return read_sprites(sources)
    fetch(sources)
    return load_emoji(sources, max_side=max_side)


def _split(sprites: Sprites, labels: Collection[str] | None, seed: int) -> dict[Split, list[Concept]]:
    """Concepts by split; chosen ones are all of train."""
    found = list({sprite.concept.code: sprite.concept for sprite in sprites.values()}.values())
    split: dict[Split, list[Concept]] = {name: [] for name in SPLITS}
    if labels is None:
        for concept in found:
            split[split_of(concept, seed)].append(concept)
    else:
        _refuse_unknown("concepts", labels, {concept.label for concept in found})
        split["train"] = [concept for concept in found if concept.label in labels]
    return split


def _refuse_unknown(what: str, asked: Collection[str], known: Collection[str]) -> None:
    unknown = sorted(set(asked) - set(known))
    if unknown or not asked:
        raise DataError(f"no {what} {', '.join(unknown) or 'at all'}; expected some of: {', '.join(sorted(known))}")


def _list_jobs(
    split: Split, concepts: dict[Split, list[Concept]], sprites: Sprites, scenes: int, variants: int, seed: int
) -> list[Job]:
    """All samples of a split, shuffled, so that each shard is a fair mixture."""
    styles = tuple(sorted({style for _, style in sprites}))
    seen = Pool(sprites, styles, concepts["train"])
    if split == "train":
        alone, composed = seen, [(seen, scenes)]
    else:
        alone = Pool(sprites, styles, concepts["train"], special=concepts[split])
        # Half the scenes show held-out concepts; the rest known ones, in test newly paired.
        half = min(HELD_OUT, scenes) // 2
        known = Pool(sprites, styles, concepts["train"], reserved=split == "test")
        composed = [(known, half)] + ([(alone, half)] if concepts[split] else [])
    jobs = [
        Job(alone, sprites[concept.code, style], plain=variant == 0)
        for concept in concepts[split] or concepts["train"]
        for style in styles
        for variant in range(variants if split == "train" else HELD_OUT_VARIANTS)
    ]
    jobs += [Job(pool) for pool, number in composed for _ in range(number)]
    random.Random(f"{seed}/{split}/order").shuffle(jobs)
    return jobs


def _samples(jobs: list[Job], first: int, size: int, rng: random.Random) -> Iterator[tuple[str, Scene, str, bytes]]:
    for number, job in enumerate(jobs, start=first):
        pool = job.pool
        if job.sprite is None:
            scene = compose_scene(pool, rng)
        else:
            scene = compose_single(job.sprite, pool.sprites, rng, pool.novelty, job.plain)
        picture = io.BytesIO()
        render(scene, pool.sprites, size).save(picture, "webp", lossless=True, quality=40, method=2)
        yield f"{number:09d}", scene, caption(scene, rng), picture.getvalue()


def _write_shard(path: Path, samples: Iterator[tuple[str, Scene, str, bytes]]) -> None:
    """Written beside its place and renamed, so that a shard that exists is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tar.partial")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive:
        for key, scene, text, picture in samples:
            meta = json.dumps(scene.to_json(), ensure_ascii=False).encode()
            for suffix, data in (("webp", picture), ("txt", text.encode()), ("json", meta)):
                # Time and owner stay 0, so that a shard has the same bytes whenever it is made.
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    partial.replace(path)


def _describe(
    output: Path,
    counts: dict[Split, int],
    concepts: dict[Split, list[Concept]],
    **settings: Any,
) -> None:
    """Write dataset.json and NOTICE.md; refuse to mix two different data sets in one folder."""
    about = {
        "format": FORMAT,
        **settings,
        "samples": counts,
        "samples_per_shard": SHARD,
        "versions": {package.name: package.version for package in PACKAGES},
        "concepts": {s: {c.code: c.names[0] for c in found} for s, found in concepts.items()},
    }
    path = output / "dataset.json"
    text = json.dumps(about, ensure_ascii=False, indent=1)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise DataError(
            f"{output} holds another data set than the one asked for "
            f"({', '.join(f'{name}={value}' for name, value in settings.items())}); "
            "choose another folder, or delete this one"
        )
    output.mkdir(parents=True, exist_ok=True)
    (output / "NOTICE.md").write_text(notice(), encoding="utf-8")
    partial = path.with_suffix(".json.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
