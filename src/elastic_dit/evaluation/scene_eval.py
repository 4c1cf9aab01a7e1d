"""SceneEval: does an image show what its caption asks for? GenEval's six tasks (arXiv 2310.11513) on sprites.

A scene is right if all that its task is about is right: which objects, how many, in which colours, on which side.
Overall is the mean over the tasks, so that a task with many prompts weighs no more than one with few. Style is a
seventh score, of the captions that name one, and not part of the overall score.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import cycle, islice, product
from typing import NamedTuple

from elastic_dit.errors import DataError
from elastic_dit.training.data.scenes import STYLE_WORDS, TAGS, Scene, SceneObject

STYLE = "style"
SLACK = 0.1
"""Share of the two objects' sizes by which their centres must be apart to count as apart (GenEval's)."""
CLEAR = 0.5
"""Least share of an offset that must point to a side (GenEval's)."""


class Found(NamedTuple):
    """One object that a detector sees."""

    label: str
    color: str | None
    """The paint, or that which the thing is like as it is (a star is yellow); None: like no paint."""
    style: str
    box: tuple[float, float, float, float]
    """Left, top, right, bottom as fractions of the frame."""
    score: float
    """In 0..1."""


class Prompt(NamedTuple):
    """One image to make."""

    caption: str
    scene: Scene
    seed: int


def choose_prompts(scenes: Iterable[tuple[str, Scene]], per_task: int) -> list[Prompt]:
    """As many prompts for each task; a caption that comes again has another seed.

    Args:
        scenes: captions with their scenes.
        per_task: prompts for each of `TAGS`.

    Raises:
        DataError: a task without a scene.
    """
    by_task: dict[str, list[tuple[str, Scene]]] = defaultdict(list)
    for caption, scene in scenes:
        by_task[scene.tag].append((caption, scene))
    missing = [tag for tag in TAGS if tag not in by_task]
    if missing:
        raise DataError(
            f"no scene for {', '.join(missing)} among {sum(map(len, by_task.values()))}; expected all of "
            f"{', '.join(TAGS)}: give the folders of several splits, as test has no counting"
        )
    drawn = [one for tag in TAGS for one in islice(cycle(by_task[tag]), per_task)]
    return [Prompt(caption, scene, seed) for seed, (caption, scene) in enumerate(drawn)]


def is_right(scene: Scene, found: Sequence[Found]) -> bool:
    """Whether the scene's task is solved by what was found."""
    subject, others = scene.objects[0], scene.objects[scene.count :]
    own = _all_of(subject, found)
    match scene.tag:
        case "single_object":
            return bool(own)
        case "counting":
            return len(own) == scene.count
        case "colors":
            return any(one.color == subject.color for one in own)
        case "two_object":
            return bool(own) and bool(_all_of(others[0], found))
        case "color_attr":
            return all(any(one.color == item.color for one in _all_of(item, found)) for item in (subject, others[0]))
        case "position":
            pairs = list(product(own[: scene.count], _all_of(others[0], found)[:1]))
            return len(pairs) == scene.count and all(scene.relation in sides(*pair) for pair in pairs)
        case _:
            raise DataError(f"unknown task {scene.tag!r}; known: {', '.join(TAGS)}")


def names_style(caption: str, style: str) -> bool:
    """Whether a caption asks for a style in so many words."""
    return any(word in caption.lower() for word in STYLE_WORDS[style])


def is_styled(scene: Scene, found: Sequence[Found]) -> bool:
    """Whether most of what was found is drawn in the scene's style."""
    styles = Counter(one.style for one in found)
    return bool(styles) and styles.most_common(1)[0][0] == scene.style


def judge_scenes(prompts: Sequence[Prompt], found: Sequence[Sequence[Found]]) -> dict[str, list[float]]:
    """1 for each image that is right and 0 for each that is not, by task, in the order of the prompts."""
    results: dict[str, list[float]] = {tag: [] for tag in (*TAGS, STYLE)}
    for prompt, objects in zip(prompts, found, strict=True):
        results[prompt.scene.tag].append(float(is_right(prompt.scene, objects)))
        if names_style(prompt.caption, prompt.scene.style):
            results[STYLE].append(float(is_styled(prompt.scene, objects)))
    return results


def sides(one: Found, other: Found) -> set[str]:
    """On which sides of `other` the first object is: none if their centres are too close."""
    offsets: list[float] = []
    for low, high in ((0, 2), (1, 3)):
        apart = (one.box[low] + one.box[high] - other.box[low] - other.box[high]) / 2
        sizes = one.box[high] - one.box[low] + other.box[high] - other.box[low]
        offsets.append(max(0.0, abs(apart) - SLACK * sizes) * (1 if apart > 0 else -1))
    length = sum(offset**2 for offset in offsets) ** 0.5
    if not length:
        return set()
    x, y = (offset / length for offset in offsets)
    truth = {"left of": x < -CLEAR, "right of": x > CLEAR, "above": y < -CLEAR, "below": y > CLEAR}
    return {side for side, holds in truth.items() if holds}


def _all_of(item: SceneObject, found: Sequence[Found]) -> list[Found]:
    """Every object of a kind, the surest first."""
    return sorted((one for one in found if one.label == item.label), key=lambda one: -one.score)
