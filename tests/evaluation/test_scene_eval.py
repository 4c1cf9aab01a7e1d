"""SceneEval's rules: what counts as right for each task."""

import pytest

from elastic_dit.errors import DataError
from elastic_dit.evaluation.scene_eval import (
    Found,
    choose_prompts,
    is_right,
    is_styled,
    judge_scenes,
    names_style,
    sides,
)
from elastic_dit.training.data.scenes import TAGS, Background, Scene, SceneObject

HERE, THERE = (0.0, 0.25, 0.4, 0.65), (0.6, 0.25, 1.0, 0.65)


def thing(label: str, color: str | None = None) -> SceneObject:
    return SceneObject("0", label, (label,), (), "3d", color, color is not None, HERE)


def scene(tag: str, *objects: SceneObject, count: int = 1, relation: str | None = None) -> Scene:
    return Scene(tag, "3d", objects, Background("white"), count, relation)


def seen(label: str, box: tuple[float, float, float, float] = HERE, color: str | None = None, score: float = 0.9):
    return Found(label, color, "3d", box, score)


DOG, CAT = thing("dog"), thing("cat")


@pytest.mark.parametrize(
    ("what", "found", "right"),
    [
        (scene("single_object", DOG), [seen("dog")], True),
        (scene("single_object", DOG), [seen("dog"), seen("cat")], True),
        (scene("single_object", DOG), [seen("cat")], False),
        (scene("single_object", DOG), [], False),
        (scene("two_object", DOG, CAT), [seen("cat"), seen("dog")], True),
        (scene("two_object", DOG, CAT), [seen("cat"), seen("cat")], False),
        (scene("counting", DOG, DOG, DOG, count=3), [seen("dog")] * 3, True),
        (scene("counting", DOG, DOG, DOG, count=3), [seen("dog")] * 2, False),
        (scene("counting", DOG, DOG, count=2), [seen("dog")] * 3, False),
        (scene("colors", thing("dog", "red")), [seen("dog", color="red")], True),
        (scene("colors", thing("dog", "red")), [seen("dog")], False),
        (scene("colors", thing("dog", "red")), [seen("dog", color="blue"), seen("cat", color="red")], False),
        (scene("color_attr", thing("dog", "red"), thing("cat", "blue")), "right paints", True),
        (scene("color_attr", thing("dog", "red"), thing("cat", "blue")), "swapped paints", False),
        (scene("position", DOG, CAT, relation="left of"), [seen("dog", HERE), seen("cat", THERE)], True),
        (scene("position", DOG, CAT, relation="left of"), [seen("dog", THERE), seen("cat", HERE)], False),
        (scene("position", DOG, CAT, relation="above"), [seen("dog", HERE), seen("cat", THERE)], False),
        (scene("position", DOG, CAT, relation="left of"), [seen("dog", HERE)], False),
        (scene("position", DOG, DOG, CAT, count=2, relation="left of"), [seen("dog"), seen("cat", THERE)], False),
        (
            scene("position", DOG, DOG, CAT, count=2, relation="left of"),
            [seen("dog"), seen("dog"), seen("cat", THERE)],
            True,
        ),
    ],
)
def test_what_is_right(what: Scene, found: list[Found] | str, right: bool) -> None:
    if found == "right paints":
        found = [seen("dog", color="red"), seen("cat", THERE, "blue")]
    elif found == "swapped paints":
        found = [seen("dog", color="blue"), seen("cat", THERE, "red")]
    assert not isinstance(found, str)
    assert is_right(what, found) == right


def test_the_surest_object_stands_for_its_kind() -> None:
    """As in GenEval: a position is that of the surest detection."""
    what = scene("position", DOG, CAT, relation="left of")
    cat = seen("cat", (0.45, 0.25, 0.55, 0.65))
    assert is_right(what, [seen("dog", THERE, score=0.4), seen("dog", HERE, score=0.8), cat])
    assert not is_right(what, [seen("dog", THERE, score=0.8), seen("dog", HERE, score=0.4), cat])


def test_sides() -> None:
    assert sides(seen("dog", HERE), seen("cat", THERE)) == {"left of"}
    assert sides(seen("dog", (0.0, 0.0, 0.2, 0.2)), seen("cat", (0.8, 0.8, 1.0, 1.0))) == {"left of", "above"}
    assert sides(seen("dog", (0.0, 0.8, 0.2, 1.0)), seen("cat", (0.1, 0.0, 0.3, 0.2))) == {"below"}
    # centres 0.05 apart, sizes of 0.4: too close to be beside one another
    assert sides(seen("dog", HERE), seen("cat", (0.05, 0.25, 0.45, 0.65))) == set()


def test_style() -> None:
    assert names_style("a dog, glossy 3D render", "3d")
    assert not names_style("a dog on white", "3d")
    what = scene("single_object", DOG)
    assert is_styled(what, [seen("dog"), seen("cat"), seen("cat")._replace(style="noto")])
    assert not is_styled(what, [seen("dog")._replace(style="noto")])
    assert not is_styled(what, [])


def all_tasks() -> list[tuple[str, Scene]]:
    objects = {"counting": (DOG, DOG), "colors": (thing("dog", "red"),), "single_object": (DOG,)}
    pair = (thing("dog", "red"), thing("cat", "blue"))
    return [
        (f"{tag} {index}", scene(tag, *objects.get(tag, pair), count=2 if tag == "counting" else 1, relation="above"))
        for tag in TAGS
        for index in range(2)
    ]


def test_prompts_are_as_many_for_each_task() -> None:
    prompts = choose_prompts(all_tasks(), per_task=3)
    assert [prompt.scene.tag for prompt in prompts] == [tag for tag in TAGS for _ in range(3)]
    again = [prompt for prompt in prompts if prompt.caption == "counting 0"]
    assert len(again) == 2 and again[0].seed != again[1].seed
    with pytest.raises(DataError, match="no scene for counting"):
        choose_prompts([one for one in all_tasks() if one[1].tag != "counting"], 3)


def test_results_by_task() -> None:
    prompts = choose_prompts(all_tasks(), per_task=2)
    results = judge_scenes(prompts, [[seen("dog")] for _ in prompts])
    assert results["single_object"] == [1, 1]
    assert results["two_object"] == results["counting"] == [0, 0]
    assert results["style"] == []  # none of the captions names one
