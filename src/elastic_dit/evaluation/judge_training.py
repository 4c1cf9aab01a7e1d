"""Make the tools that score images, and measure them on held-out real scenes, where the truth is known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elastic_dit.evaluation.detector_training import train_detector
from elastic_dit.evaluation.image_features import CaptionRegression, EfficientNetLite0, features_of
from elastic_dit.evaluation.judge import REGRESSION, Judge, Tools, sentence_vectors
from elastic_dit.evaluation.judge_data import SIZE, compose_pictures, everyday, read_pictures
from elastic_dit.evaluation.natural_colors import natural_colors
from elastic_dit.evaluation.sprite_detector import DETECTOR
from elastic_dit.evaluation.variants import Progress
from elastic_dit.records import Environment, RunRecord
from elastic_dit.training.data.prepare import load_sources


def train_judge(
    sources: Path,
    check: Sequence[str],
    output: Path,
    *,
    count: int,
    epochs: int,
    pairs: int,
    seed: int = 0,
    command: str = "",
    progress: Progress = lambda label, done, total: None,
) -> RunRecord:
    """Train the detector and the regression, write them to a folder, and score real held-out images with them.

    Args:
        sources: folder of the emoji packages, or of saved sprites.
        check: folders of held-out scenes.
        output: folder for the weights.
        count: scenes to compose and train on.
        epochs: of the detector.
        pairs: for the regression, the first ones.
        seed: of the scenes and the detector.
        command: what makes the record again.
        progress: see `Progress`.
    """
    sprites = load_sources(sources, max_side=2 * SIZE)
    images, captions, scenes = compose_pictures(sprites, count, seed, progress)
    natural = natural_colors(everyday(sprites))
    detector = train_detector(images, scenes, natural, epochs=epochs, seed=seed, progress=progress)
    detector.save(output / DETECTOR)
    features = features_of(EfficientNetLite0(), images[:pairs], progress)
    CaptionRegression.fit(features, sentence_vectors(captions[:pairs])).save(output / REGRESSION)
    tools = Tools.load(output)  # as it is on disk, in float16
    return RunRecord(
        kind="judge-train",
        command=command,
        environment=Environment.here(),
        config={"scenes": count, "check": list(check), "epochs": epochs, "pairs": len(features), "seed": seed},
        results=_truth(tools, check, progress)
        | {
            "labels": list(detector.labels),
            "natural_colors": [[*key, color] for key, color in sorted(natural.items())],
        },
    )


def _truth(tools: Tools, check: Sequence[str], progress: Progress) -> dict[str, Any]:
    """The scores of real images: what a perfect model would have."""
    real = read_pictures(check)
    scored = Judge(tools, real.prompts, real, progress)(real.images)
    counts = {name.removeprefix("scene_eval_"): len(values) for name, values in scored.samples.items()}
    return {"truth": scored.results, "counts": counts}
