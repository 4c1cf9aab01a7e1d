"""What a prompt asks for, and rank correlation with an interval."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.regression import spearman_corrcoef

from elastic_dit.evaluation.difficulty import correlation, names_background, quarters, ranks, scene_difficulty, spearman
from elastic_dit.evaluation.scene_eval import Prompt
from elastic_dit.training.data.scenes import Background, Scene, SceneObject


def thing(label: str, color: str | None = None, *, repainted: bool = True) -> SceneObject:
    return SceneObject("0", label, (label,), (), "3d", color, color is not None and repainted, (0.0, 0.0, 0.5, 0.5))


def prompt(
    caption: str,
    *objects: SceneObject,
    count: int = 1,
    relation: str | None = None,
    background: Background = Background("white"),  # noqa: B008  it is frozen
) -> Prompt:
    return Prompt(caption, Scene("single_object", "3d", objects, background, count, relation), seed=0)


DOG, CAT = thing("dog"), thing("cat")
STRIPES = Background("light green", "stripes")


@pytest.mark.parametrize(
    ("asked", "points"),
    [
        (prompt("dog", DOG), 1),
        (prompt("a dog, 3d render", DOG), 2),
        (prompt("a dog on white", DOG), 2),
        (prompt("a red dog", thing("dog", "red")), 2),
        (prompt("a red apple", thing("red apple", "red", repainted=False)), 1),
        (prompt("two dogs", DOG, DOG, count=2), 3),
        (prompt("two red dogs", *[thing("dog", "red")] * 2, count=2), 4),
        (prompt("a dog and a cat", DOG, CAT), 2),
        (prompt("a dog left of a cat", DOG, CAT, relation="left of"), 3),
        (prompt("a red dog and a blue cat", thing("dog", "red"), thing("cat", "blue")), 4),
        (
            prompt(
                "two red dogs above a blue cat on a striped light green background, glossy 3d render",
                *[thing("dog", "red")] * 2,
                thing("cat", "blue"),
                count=2,
                relation="above",
                background=STRIPES,
            ),
            9,
        ),
    ],
    ids=lambda value: value.caption if isinstance(value, Prompt) else None,
)
def test_objects_and_attributes_are_counted(asked: Prompt, points: int) -> None:
    assert scene_difficulty(asked) == points


@pytest.mark.parametrize(
    "end", ["on light green", "on a light green background", "on a striped light green background"]
)
def test_a_named_background_is_found(end: str) -> None:
    assert names_background(prompt(f"a dog {end}, 3d", DOG, background=STRIPES))


def test_a_colour_elsewhere_is_no_background() -> None:
    said = "a red dog on the left of a red cat"
    assert not names_background(prompt(said, DOG, CAT, background=Background("red")))


def test_quarters() -> None:
    easy, hard = quarters([3, 1, 2, 1, 5, 5, 2, 9])
    assert (easy, hard) == ([1, 3], [5, 7])  # of equals below, the first; above, the last
    assert quarters([2, 1]) == ([1], [0])


@pytest.mark.parametrize("values", [7, 3], ids=["some ties", "many ties"])
def test_spearman_is_torchmetrics(values: int) -> None:
    random = np.random.default_rng(0)
    a, b = (random.integers(0, values, 40).astype(float) for _ in range(2))
    b += a
    expected = spearman_corrcoef(torch.from_numpy(a), torch.from_numpy(b))
    assert spearman(a, b) == pytest.approx(float(expected), abs=1e-5)


def test_ranks_share_their_mean() -> None:
    assert ranks(np.array([5.0, 1.0, 5.0, 9.0])).tolist() == [2.5, 1, 2.5, 4]


def test_what_never_varies_tells_nothing() -> None:
    assert spearman(np.ones(5), np.arange(5.0)) == 0


def test_strata_do_not_make_a_correlation() -> None:
    """Within each noise level compute falls with difficulty; over both together it would rise."""
    spent = np.array([[1.0, 2, 3, 4, 5], [11.0, 12, 13, 14, 15]])
    difficulty = np.array([[5.0, 4, 3, 2, 1], [15.0, 14, 13, 12, 11]])
    assert spearman(spent.ravel(), difficulty.ravel()) > 0.4
    found = correlation(spent, difficulty)
    assert found.value == pytest.approx(-1) and found.by_stratum == pytest.approx([-1, -1])


def test_the_interval_is_that_of_the_normal_approximation() -> None:
    """atanh(rho) has a standard error of about 1.03 / sqrt(N - 3) (Fieller, 1957)."""
    random = np.random.default_rng(1)
    difficulty = random.normal(size=200)
    spent = difficulty + random.normal(size=200)
    found = correlation(spent[None], difficulty)
    around = np.tanh(np.arctanh(found.value) + np.array([-1.96, 1.96]) * 1.03 / np.sqrt(197))
    assert found.interval == pytest.approx(around, abs=0.04)
    low, high = correlation(random.normal(size=(1, 200)), difficulty).interval
    assert low < 0 < high
