"""Make the tools that score images, and measure them on held-out real scenes, where the truth is known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from elastic_dit.evaluation.detector_training import train_detector
from elastic_dit.evaluation.image_features import CaptionRegression, EfficientNetLite0, features_of
from elastic_dit.evaluation.judge import DETECTOR, REGRESSION, Judge, Tools, sentence_vectors
from elastic_dit.evaluation.scene_eval import Prompt
from elastic_dit.evaluation.variants import Progress
from elastic_dit.records import Environment, RunRecord
from elastic_dit.training.data.scenes import Scene
from elastic_dit.training.data.sources import read_scenes


def train_judge(
    data: str,
    check: Sequence[str],
    output: Path,
    *,
    epochs: int,
    pairs: int,
    seed: int = 0,
    command: str = "",
    progress: Progress = lambda label, done, total: None,
) -> RunRecord:
    """Train the detector and the regression, write them to a folder, and score real held-out images with them.

    Args:
        data: folder of training scenes.
        check: folders of held-out scenes.
        output: folder for the weights.
        epochs: of the detector.
        pairs: for the regression, the first ones.
        seed: of the detector.
        command: what makes the record again.
        progress: see `Progress`.
    """
    progress("reading", 0, 0)
    images, captions, scenes = read_all([data])
    detector = train_detector(images, scenes, epochs=epochs, seed=seed, progress=progress)
    detector.save(output / DETECTOR)
    features = features_of(EfficientNetLite0(), images[:pairs], progress)
    CaptionRegression.fit(features, sentence_vectors(captions[:pairs])).save(output / REGRESSION)
    tools = Tools.load(output)  # as it is on disk, in float16
    return RunRecord(
        kind="judge-train",
        command=command,
        environment=Environment.here(),
        config={"data": data, "check": list(check), "epochs": epochs, "pairs": len(features), "seed": seed},
        results=_truth(tools, check, progress) | {"images": len(images), "labels": list(detector.labels)},
    )


def read_all(folders: Sequence[str]) -> tuple[list[Image.Image], list[str], list[Scene]]:
    """Images, captions and scenes of several folders."""
    samples = [sample for folder in folders for sample in read_scenes(folder)]
    return [image for image, _, _ in samples], [text for _, text, _ in samples], [scene for _, _, scene in samples]


def _truth(tools: Tools, check: Sequence[str], progress: Progress) -> dict[str, Any]:
    """The scores of real images: what a perfect model would have."""
    images, captions, scenes = read_all(check)
    prompts = [Prompt(caption, scene, 0) for caption, scene in zip(captions, scenes, strict=True)]
    scored = Judge(tools, prompts, images, progress)(images)
    counts = {name.removeprefix("scene_eval_"): len(values) for name, values in scored.samples.items()}
    return {"truth": scored.results, "counts": counts}
