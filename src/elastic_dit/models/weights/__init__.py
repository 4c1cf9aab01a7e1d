"""Where the trained weights of the small model lie inside the package."""

from pathlib import Path
from typing import Literal

from elastic_dit.errors import CheckpointError

_HERE = Path(__file__).parent


ModelName = Literal["emoji-flux", "emoji-dozen", "emoji-dozen-converged"]
AdapterName = Literal["emoji-flux-elastic", "emoji-dozen-half", "emoji-dozen-budgets", "emoji-dozen-converged-half"]


def shipped_model(name: ModelName = "emoji-flux") -> Path:
    """Folder of a dense emoji model, for `EmojiFluxPipeline.from_pretrained`.

    Args:
        name: `emoji-flux` draws 42 things at 64 pixels; `emoji-dozen` draws twelve at 32, and counts some of them:
            what methods are compared on. `emoji-dozen-converged` is the latter after nine times as many samples.
    """
    return shipped_folder(name)


def shipped_adapter(name: AdapterName = "emoji-flux-elastic") -> Path:
    """Adapter folder that makes an emoji model elastic, for `elastic_dit.load`.

    Args:
        name: `emoji-flux-elastic` makes routers decide for `emoji-flux`; `emoji-dozen-half` draws in 6 steps what
            `emoji-dozen` does in 8, at half of the FLOPs; `emoji-dozen-budgets` runs it at budgets from 0.3 to 1;
            `emoji-dozen-converged-half` runs as many of 12 steps of `emoji-dozen-converged` as a prompt needs.
    """
    return shipped_folder(name)


def shipped_judge() -> Path:
    """Folder of what scores the emoji model's images, for `elastic-dit judge`."""
    return shipped_folder("emoji-judge")


def shipped_folder(name: str) -> Path:
    """Any of them by its name."""
    folder = _HERE / name
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder.name} is not in this installation; expected its folder in elastic_dit.models.weights: "
            "install from a clone of the repository or from a released wheel"
        )
    return folder
