"""A contest of methods on one pipeline: who draws, what is kept, what is spent, and what is refused."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from elastic_dit import ElasticConfig, elasticize, load, restore
from elastic_dit.baselines import baselines
from elastic_dit.bench.contest import Contest
from elastic_dit.bench.entries import Entry, Wish, list_rows
from elastic_dit.bench.judged import run_contest
from elastic_dit.conversions import save_converted
from elastic_dit.conversions.base import ROUTES, convert
from elastic_dit.errors import ConfigError, UnknownNameError
from elastic_dit.evaluation.judge import Scored
from elastic_dit.evaluation.sampling import SampleSettings, sample_images
from elastic_dit.evaluation.scene_eval import Prompt
from elastic_dit.models.loading import load_pipeline
from elastic_dit.report.judge_tables import contest_tables
from elastic_dit.training.data.scenes import TAGS, Background, Scene
from emoji import save_pair

CAPTIONS = ("a dog", "a cat", "a red apple", "two bananas", "a heart")
SCENE = Scene("single_object", "3d", (), Background("white"))
PROMPTS = [Prompt(text, SCENE, seed) for seed, text in enumerate(CAPTIONS)]
SHORT = SampleSettings(steps=4, guidance=3.0, height=16, width=16)
DENSE = Entry("dense")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contest")
    save_pair(folder)
    return folder


@pytest.fixture
def pipe(folder: Path) -> Any:
    return load_pipeline(folder / "model")


def contest(pipe: Any, output: Path, **changes: Any) -> Contest:
    values: dict[str, Any] = {"prompts": PROMPTS, "settings": SHORT, "folder": output, "batch": 2, "repeats": 1}
    return Contest(pipe, **values | changes)


def pixels(images: list[Any]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_every_entry_draws_as_it_does_alone(pipe: Any, folder: Path, tmp_path: Path) -> None:
    adapter = str(folder / "adapter")
    ours = contest(pipe, tmp_path)
    drawn = {name: pixels(ours.images(Entry(name, adapter=path))) for name, path in (("dense", None), ("own", adapter))}
    assert not hasattr(pipe.transformer, "_diffusers_hook")

    def alone() -> np.ndarray:
        parts = [sample_images(pipe, CAPTIONS[i : i + 2], range(i, min(i + 2, 5)), SHORT) for i in (0, 2, 4)]
        return pixels([image for part in parts for image in part])

    assert (drawn["dense"] == alone()).all()
    load(pipe, adapter)
    assert (drawn["own"] == alone()).all()
    restore(pipe)
    assert (drawn["own"] != drawn["dense"]).any()


def test_baselines(pipe: Any, tmp_path: Path) -> None:
    ours = contest(pipe, tmp_path)
    dense = pixels(ours.images(DENSE))
    half, cache, never = (
        ours.entry(Wish.read(text)) for text in ("fewer-steps=0.5", "first-block-cache=1000", "first-block-cache=0")
    )
    fewer = pixels(sample_images(pipe, CAPTIONS[:2], range(2), SampleSettings(2, 3.0, 16, 16)))
    assert (pixels(ours.images(half))[:2] == fewer).all()
    assert ours.cost(half).flops_share == pytest.approx(0.5)
    assert (pixels(ours.images(cache)) != dense).any()  # never enough change: one step computed, three stored
    assert ours.cost(cache).flops_share < 0.75
    np.testing.assert_allclose(pixels(ours.images(never)).astype(int), dense, atol=1)
    assert (pixels(contest(pipe, tmp_path / "again").images(DENSE)) == dense).all()  # the pipeline is dense again


@pytest.mark.parametrize(
    "name",
    ["cache-dit", "fastercache", "fora", "learning-to-cache", "magcache", "taylorseer", "teacache", "teacache-fitted"],
)
def test_caches_that_a_pipeline_runs(pipe: Any, tmp_path: Path, name: str) -> None:
    """A pipeline calls both guidance branches, and forgets their states when its run ends."""
    if name == "cache-dit":
        pytest.importorskip("cache_dit")
    ours = contest(pipe, tmp_path)
    assert ours.cost(ours.entry(Wish.read(f"{name}={baselines[name].settings[-1]}"))).flops_share < 1


def test_costs(pipe: Any, folder: Path, tmp_path: Path) -> None:
    ours = contest(pipe, tmp_path)
    for entry in (DENSE, Entry("own", adapter=str(folder / "adapter"))):
        ours.images(entry)
    cost = ours.cost(DENSE)
    assert cost.flops_share == 1
    assert set(cost.ratio) == {"median", "min", "max"} and cost.ratio["median"] > 0
    own = ours.cost(Entry("own", adapter=str(folder / "adapter")))
    assert own.flops_share < 1 and own.together is None
    assert ours.cost(Entry("own", adapter=str(folder / "adapter"))) == own  # read, not timed again


def test_several_images_at_once_are_timed_too(pipe: Any, tmp_path: Path) -> None:
    sizes: list[int] = []
    forward = pipe.transformer.forward

    def seen(*args: Any, **kwargs: Any) -> Any:
        sizes.append(len(kwargs["hidden_states"]))
        return forward(*args, **kwargs)

    pipe.transformer.forward = seen
    cost = contest(pipe, tmp_path, at_once=2, batch=5).cost(DENSE)
    assert cost.together is not None and cost.together["min"] > 0
    assert {1, 2} < set(sizes)  # and 5, whose FLOPs are counted
    assert contest(pipe, tmp_path, at_once=2, batch=5).cost(DENSE) == cost  # read, not timed again
    assert contest(pipe, tmp_path).cost(DENSE).together is None
    sizes.clear()
    contest(pipe, tmp_path, repeats=2).cost(DENSE)
    assert sizes  # a record does not name repeats that were not run


def test_a_stopped_contest_goes_on(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pixels(contest(pipe, tmp_path / "whole").images(DENSE))
    made = []

    def stop(label: str, done: int, total: int) -> None:
        made.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        contest(pipe, tmp_path / "stopped", progress=stop).images(DENSE)
    made.clear()
    again = contest(pipe, tmp_path / "stopped", progress=lambda label, done, total: made.append(done))
    assert (pixels(again.images(DENSE)) == whole).all()
    assert made == [2, 4]


def test_other_images_are_not_taken_for_these(pipe: Any, folder: Path, tmp_path: Path) -> None:
    entry = Entry("own", adapter=str(folder / "adapter"))
    contest(pipe, tmp_path).images(entry)
    with pytest.raises(ConfigError, match="other prompts, settings or models"):
        contest(pipe, tmp_path, settings=SampleSettings(3, 3.0, 16, 16)).images(entry)
    with pytest.raises(ConfigError, match="other prompts, settings or models"):
        contest(pipe, tmp_path, prompts=PROMPTS[::-1]).images(entry)
    elastic = load(pipe, folder / "adapter")
    torch.nn.init.constant_(elastic.routers[0].gate_head.bias, 1.0)
    retrained = elastic.save(tmp_path / "retrained")
    elastic = load(pipe, folder / "adapter")
    elastic.max_forecast = 1
    reset = elastic.save(tmp_path / "reset")
    restore(pipe)
    for other in (retrained, reset):
        with pytest.raises(ConfigError, match="other prompts, settings or models"):
            contest(pipe, tmp_path).images(Entry("own", adapter=str(other)))
    with torch.no_grad():  # of the same shapes, but another model
        next(pipe.transformer.parameters()).add_(1.0)
    with pytest.raises(ConfigError, match="other prompts, settings or models"):
        contest(pipe, tmp_path).images(entry)


def test_images_of_a_cache_are_those_of_its_batch(pipe: Any, folder: Path, tmp_path: Path) -> None:
    """It decides for a batch as a whole; routers decide for each image."""
    cache, own = Entry("fora", baseline="fora", setting=2), Entry("own", adapter=str(folder / "adapter"))
    for entry in (cache, own):
        contest(pipe, tmp_path).images(entry)
    contest(pipe, tmp_path, batch=3).images(own)
    with pytest.raises(ConfigError, match="another batch"):
        contest(pipe, tmp_path, batch=3).images(cache)
    file = contest(pipe, tmp_path).folder_of(cache) / "entry.json"
    held = json.loads(file.read_text())
    assert held.pop("batch") == 2
    file.write_text(json.dumps(held))  # as earlier versions left it
    contest(pipe, tmp_path, batch=3).images(cache)


@pytest.mark.parametrize(("batch", "seen"), [(2, [2] * 6), (20, [20])])
def test_flops_of_a_cache_are_those_of_its_batch(pipe: Any, tmp_path: Path, batch: int, seen: list[int]) -> None:
    ours = contest(pipe, tmp_path, batch=batch, prompts=PROMPTS * 8)
    sizes: list[int] = []
    sample = ours._pipeline.sample

    def noted(prompts: Any, settings: SampleSettings) -> Any:
        if settings.steps == 4:
            sizes.append(len(prompts))
        return sample(prompts, settings)

    ours._pipeline.sample = noted
    ours._flops_of_dense()
    sizes.clear()
    ours.tuned(Wish.read("fora@0.5"))
    assert sizes[: len(seen)] == seen and set(sizes) == set(seen)


def test_images_of_another_dtype_are_not_taken_for_these(pipe: Any, tmp_path: Path) -> None:
    contest(pipe, tmp_path).images(DENSE)
    with pytest.raises(ConfigError, match="other prompts, settings or models"):
        contest(pipe.to(torch.bfloat16), tmp_path).images(DENSE)


def test_more_reuse_costs_less(pipe: Any, folder: Path, tmp_path: Path) -> None:
    ours = contest(pipe, tmp_path)
    never, often = (list_rows([f"{folder / 'adapter'}@K={reuse}"], [])[1].runs[0] for reuse in (0, 3))
    assert (never.max_reuse, often.max_reuse) == (0, 3)
    assert ours.cost(often).flops_share < ours.cost(never).flops_share


def test_fewer_steps_of_an_adapter(pipe: Any, folder: Path, tmp_path: Path) -> None:
    ours = contest(pipe, tmp_path)
    (entry,) = list_rows([f"{folder / 'adapter'}@K=0@steps=2"], [])[1].runs
    assert (entry.max_reuse, entry.steps) == (0, 2)
    assert entry.name.endswith("adapter, K = 0, 2 steps")
    whole = ours.cost(list_rows([f"{folder / 'adapter'}@K=0"], [])[1].runs[0])
    assert ours.cost(entry).flops_share == pytest.approx(whole.flops_share / 2, rel=0.2)
    elastic = load(pipe, folder / "adapter")
    elastic.max_reuse = 0
    alone = sample_images(pipe, CAPTIONS[:2], range(2), replace(SHORT, steps=2))
    restore(pipe)
    assert (pixels(ours.images(entry))[:2] == pixels(alone)).all()


def test_guidance_and_spacing_of_its_own(pipe: Any, folder: Path, tmp_path: Path) -> None:
    ours = contest(pipe, tmp_path)
    (entry,) = list_rows([f"{folder / 'adapter'}@K=0@steps=2@guidance=2@shift=1.5"], [])[1].runs
    assert entry.name.endswith("adapter, K = 0, 2 steps, guidance 2, shift 1.5")
    with contest(pipe, tmp_path / "other")._pipeline.configured(entry) as (_, settings):
        assert settings == replace(SHORT, steps=2, guidance=2.0, shift=1.5)
        alone = pixels(sample_images(pipe, CAPTIONS[:2], range(2), settings))
    assert (pixels(ours.images(entry))[:2] == alone).all()
    plain = replace(SHORT, steps=2, guidance=2.0)
    half, whole = (ours.entry(Wish.read(f"fewer-steps={share}@guidance=2")) for share in (0.5, 0))
    assert (pixels(ours.images(half))[:2] == pixels(sample_images(pipe, CAPTIONS[:2], range(2), plain))).all()
    shift = ours.entry(Wish.read("fewer-steps=0@guidance=2@shift=1.5"))
    assert shift.name == "fewer-steps 0, guidance 2, shift 1.5"
    assert (pixels(ours.images(shift)) != pixels(ours.images(whole))).any()
    assert ours.cost(shift).flops_share == pytest.approx(1)


def test_a_shift_that_cannot_be_is_told_at_once(pipe: Any, folder: Path, tmp_path: Path) -> None:
    rows = list_rows([f"{folder / 'adapter'}@shift=0"], [])
    with pytest.raises(ConfigError, match="shift of 0 came"):
        run_contest(contest(pipe, tmp_path / "images"), rows, cast(Any, Marks(PROMPTS)))
    assert not (tmp_path / "images").exists()


def test_an_adapter_at_another_threshold(pipe: Any, folder: Path, tmp_path: Path) -> None:
    rows = list_rows([f"{folder / 'adapter'}@tau=0.01", f"{folder / 'adapter'}@tau=0.99"], [0.5])
    low, high = (row.runs[0] for row in rows[1:])
    assert (low.tau, high.tau) == (0.01, 0.99)
    assert rows[1].name.endswith("adapter, tau = 0.01")
    ours = contest(pipe, tmp_path)
    assert ours.cost(high).flops_share < ours.cost(low).flops_share


def test_an_adapter_that_is_a_step_late(pipe: Any, tmp_path: Path) -> None:
    elastic = elasticize(pipe, ElasticConfig.of(init="random", max_reuse=0))
    torch.nn.init.normal_(elastic.routers[0].gate_head.weight)
    sample_images(pipe, CAPTIONS[:1], [0], SHORT)
    before, after = elastic.trace.array("keep_prob")[:2, 0, 0]
    folder = elastic.save(tmp_path / "adapter")
    restore(pipe)
    tau = (before + after) / 2  # which the first block crosses between two steps
    now, late = (list_rows([f"{folder}@tau={tau}@lag={lag}"], [])[1].runs[0] for lag in (0, 1))
    assert late.name.endswith(", lag = 1")
    ours = contest(pipe, tmp_path)
    assert (pixels(ours.images(now)) != pixels(ours.images(late))).any()


def test_what_has_no_routers_has_no_dial(pipe: Any, tmp_path: Path) -> None:
    converted = str(save_converted(tmp_path / "dydit", convert(copy.deepcopy(pipe.transformer), {"method": "dydit"})))
    fixed = str(elasticize(pipe, ElasticConfig.of(route=(1.0, 0.0, 1.0))).save(tmp_path / "fixed"))
    restore(pipe)
    for asked in (f"{converted}@tau=0.6", f"{fixed}@tau=0.6", f"{fixed}@K=2", f"{fixed}@lag=1"):
        with pytest.raises(ConfigError, match="no routers"):
            list_rows([asked], [0.5])


def test_a_conversion_is_an_entry(pipe: Any, tmp_path: Path) -> None:
    converted = convert(copy.deepcopy(pipe.transformer), {"method": "dense2moe", "group": 2, "keep": 1})
    folder = str(save_converted(tmp_path / "moe", converted))
    ours = contest(pipe, tmp_path / "images")
    (entry,) = list_rows([folder], [0.5])[1].runs
    assert ours.cost(entry).flops_share < 0.8
    assert (pixels(ours.images(entry)) != pixels(ours.images(DENSE))).any()
    assert not hasattr(pipe.transformer, "conversion")


def test_a_conversion_with_routes_is_an_entry(pipe: Any, tmp_path: Path) -> None:
    transformer = copy.deepcopy(pipe.transformer)
    folder = save_converted(tmp_path / "dydit", convert(transformer, {"method": "dydit"}))
    ours = contest(pipe, tmp_path / "images")
    (alone,) = list_rows([str(folder)], [0.5])[1].runs
    whole = ours.cost(alone).flops_share
    half = ElasticConfig.of(route=(1.0, 0.0, 1.0), width_streams=())
    elasticize(transformer, half).save(folder / ROUTES)
    both = contest(pipe, tmp_path / "others")
    assert both.cost(alone).flops_share < 0.8 * whole
    assert not hasattr(pipe.transformer, "conversion")


def test_entries(pipe: Any, folder: Path, tmp_path: Path) -> None:
    elastic = elasticize(pipe, ElasticConfig.of(router_hidden_size=8, budget_range=(0.4, 1.0)))
    many = str(elastic.save(tmp_path / "many"))
    one = str(folder / "adapter")
    rows = list_rows([one, many, f"{tmp_path}/ma*"], [0.3, 0.5, 1.0])
    named = [(run.adapter, run.budget) for row in rows for run in row.runs]
    assert named == [(None, None), (one, None)] + 2 * [(many, 0.5), (many, 1.0)]
    assert rows[-1].name == f"{tmp_path}/ma* at 1"
    rows = list_rows([f"{many}@0.8", many], [0.5])
    assert [(run.adapter, run.budget) for row in rows[1:] for run in row.runs] == [(many, 0.8), (many, 0.5)]
    for asked in (f"{many}@0.2", f"{one}@0.8"):
        with pytest.raises(ConfigError, match=f"{asked} asks for a budget of .*budget_range"):
            list_rows([asked], [0.5])
    with pytest.raises(ConfigError, match=r"many was trained for budgets from 0.4 to 1; --budgets asks for 0.2, 0.3"):
        list_rows([one, many], [0.2, 0.3])
    with pytest.raises(ConfigError, match="no adapter fits"):
        list_rows([f"{tmp_path}/none*"], [])
    elasticize(pipe, ElasticConfig.of(router_hidden_size=8)).save(tmp_path / "map")
    with pytest.raises(ConfigError, match=r"map has budget_range None, .*many has \(0.4, 1.0\)"):
        list_rows([f"{tmp_path}/ma*"], [0.5])


def test_several_trainings_are_one_row(pipe: Any, folder: Path, tmp_path: Path) -> None:
    elastic = elasticize(pipe, ElasticConfig.of(route=(1.0, 0, 1.0)))
    for seed in range(2):
        elastic.save(tmp_path / f"route-{seed}" / "adapter")
    restore(pipe)
    prompts = [prompt._replace(scene=replace(SCENE, tag=tag)) for prompt, tag in zip(PROMPTS, TAGS, strict=False)]
    prompts.append(Prompt("a star", replace(SCENE, tag=TAGS[-1]), 9))
    ours = contest(pipe, tmp_path / "images", prompts=prompts)
    rows = list_rows([f"{tmp_path}/route-*/adapter"], [])
    record = run_contest(ours, rows, cast(Any, Marks(prompts)))
    dense, route = record.results["rows"]
    assert len(dense["runs"]) == 1
    assert [run["overall"] for run in route["runs"]] == [0.5, 0.25]
    assert route["overall"] == 0.375
    assert route["cost"]["flops_share"] == pytest.approx(route["runs"][0]["cost"]["flops_share"])
    beside = record.results["beside_dense"][0]
    assert beside["overall"] == pytest.approx(0.375 - 1)
    assert beside["overall_interval"] == pytest.approx((0.25 - 1, 0.5 - 1))  # of the two runs: all images are alike
    assert beside["kernel"] == pytest.approx((0.375 + 1) / 2 - 1)
    low, high = beside["kernel_interval"]
    assert low < beside["kernel"] < high
    again = run_contest(ours, rows, cast(Any, Marks(prompts)))  # its first mark would be another one
    assert json.dumps(again.results["rows"]) == json.dumps(record.results["rows"])
    other = Marks(prompts)
    other.digest = "another judge"
    assert run_contest(ours, rows[:1], cast(Any, other)).results["rows"][0]["overall"] == 1.0
    scores, tasks, *_ = contest_tables(record)
    assert "route (2 runs)" in scores.rows[1]
    assert tasks.rows[-1] == ("real scenes", *["99.0%"] * 6)


class Marks:
    """A judge that gives the same mark to all images of a run: 1, then 1/2, then 1/4."""

    digest = "marks"

    def __init__(self, prompts: list[Prompt]) -> None:
        self.captions, self.mark = [prompt.caption for prompt in prompts], 2.0

    def truth(self) -> dict[str, float]:
        return dict.fromkeys(TAGS, 0.99)

    def __call__(self, images: list[Any], dense: list[Any] | None = None) -> Scored:
        self.mark /= 2
        tags = {f"scene_eval_{tag}": [self.mark] * 2 for tag in TAGS}
        results = {"scene_eval": dict.fromkeys(TAGS, self.mark), "overall": self.mark, "overall_interval": (0.0, 1.0)}
        results |= {"retrieval": {"R@1": 0.0, "R@5": 0.0}, "frechet": 1.0, "kernel": 1.0, "kernel_error": 0.1}
        return Scored(results, tags | {"rank": [0] * len(images), "kernel_of_halves": [self.mark, 1.0]})


def test_wishes(pipe: Any, tmp_path: Path) -> None:
    ours = contest(pipe, tmp_path)
    assert ours.entry(Wish.read("teacache=0.4")) == Entry("teacache 0.4", baseline="teacache", setting=0.4)
    assert ours.entry(Wish.read("compiled")) == Entry("compiled", baseline="compiled")
    assert Wish.read("teacache@0.5@shift=1.5@guidance=2") == Wish("teacache", share=0.5, guidance=2.0, shift=1.5)
    assert Wish.read("compiled@guidance=2") == Wish("compiled", guidance=2.0)
    for text in ("teacache", "teacache=much", "teacache@", "compiled=some", "teacache@guidance=2", "teacache@steps=2"):
        with pytest.raises(ConfigError, match="=NUMBER"):
            Wish.read(text)
    with pytest.raises(UnknownNameError):
        Wish.read("teacash=0.4")


def test_a_share_of_the_flops_is_found(pipe: Any, tmp_path: Path) -> None:
    ours = contest(pipe, tmp_path, settings=SampleSettings(8, 3.0, 16, 16))
    found = ours.entry(Wish.read("fewer-steps@0.6"))
    assert found.setting == 0.4  # of the listed ones, 5 of 8 steps come nearest
    assert ours.cost(found).flops_share == pytest.approx(0.625)
    again = contest(pipe, tmp_path, settings=SampleSettings(8, 3.0, 16, 16))
    assert again.entry(Wish.read("fewer-steps@0.6")) == found
