"""Models that ship, put where a stage of a reproduction would leave them."""

import shutil
from pathlib import Path

from safetensors.torch import save_file

from elastic_dit import checkpoint
from elastic_dit.config import CONFIG_NAME, ElasticConfig
from elastic_dit.files import replaced_folder

SET_LATER = (
    "step_intervals",
    "step_share",
    "guidance_from",
    "max_guidance_reuse",
    "guidance_reuse_below",
    "guidance_fade",
)
"""How an adapter samples: not of its training, but of the stages behind it."""


def copy_shipped(shipped: Path, target: Path) -> None:
    """Copy a model or an adapter, the latter as its training left it.

    Args:
        shipped: its folder in the package.
        target: the folder that the stage would make; replaced if it is there.
    """
    with replaced_folder(target) as folder:
        shutil.copytree(shipped, folder, dirs_exist_ok=True)
        if (shipped / CONFIG_NAME).is_file():
            adapter = checkpoint.read(shipped)
            defaults = {name: ElasticConfig.model_fields[name].default for name in SET_LATER}
            card = adapter.card.model_copy(update={"elastic": adapter.config.model_copy(update=defaults)})
            (folder / CONFIG_NAME).write_text(card.model_dump_json(indent=2) + "\n")
            trained = {name: value for name, value in adapter.tensors.items() if "routers.selector." not in name}
            save_file(trained, folder / checkpoint.WEIGHTS_NAME)
