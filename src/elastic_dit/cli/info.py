"""`elastic-dit info`: what is installed, what a model is, what an adapter holds."""

from pathlib import Path
from typing import Annotated, Any

import typer

from elastic_dit.cli.setup import needs_extra
from elastic_dit.errors import CheckpointError


def info(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL_OR_ADAPTER]", help="Folder or Hub id of a pipeline or an adapter."),
    ] = None,
) -> None:
    """Describe this installation, or a model, or an adapter."""
    if target is None:
        _installation()
    elif (Path(target) / "elastic_config.json").is_file():
        _adapter(target)
    elif (Path(target) / "model_index.json").is_file():
        _model(target)
    elif Path(target).exists():
        raise CheckpointError(
            f"{target} has neither model_index.json nor elastic_config.json; expected a pipeline or an adapter folder"
        )
    else:
        _from_hub(target)


def _installation() -> None:
    from elastic_dit.backbones import backbones
    from elastic_dit.config import PRESETS
    from elastic_dit.records import Environment

    with needs_extra("info", "train"):
        from elastic_dit.training.families.base import families

        trainable = sorted(name for family in families.values() for name in family.pipeline_classes)
    here = Environment.here()
    _print("versions", here.versions | {"commit": here.commit})
    _print("devices", _devices(here))
    _print("backbones", {backbone.name: ", ".join(backbone.transformers) for backbone in backbones.values()})
    shown = {name: ", ".join(f"{key} {value}" for key, value in values.items()) for name, values in PRESETS.items()}
    _print("presets", shown)
    _print("pipelines that can be trained", dict.fromkeys(trainable, ""))


def _devices(here: Any) -> dict[str, str]:
    import torch

    gpus = {f"cuda:{index}": torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    return {"cpu": f"{here.device}, {here.threads} threads"} | gpus


def _model(target: str) -> None:
    """From the config files alone: the weights are neither read nor fetched."""
    import diffusers
    import torch
    from diffusers import DiffusionPipeline

    from elastic_dit.backbones import backbone_of
    from elastic_dit.config import ElasticConfig

    index: Any = DiffusionPipeline.load_config(target)
    if "transformer" not in index:
        raise CheckpointError(f"{target} is a {index.get('_class_name')} without a transformer; nothing can be elastic")
    kind: Any = getattr(diffusers, index["transformer"][1], None)
    if kind is None:
        raise CheckpointError(f"{target} has a {index['transformer'][1]}, which this diffusers does not know")
    with torch.device("meta"):
        transformer = kind.from_config(kind.load_config(target, subfolder="transformer"))
    backbone = backbone_of(transformer)
    sites = backbone.sites(transformer)
    numbers: dict[str, str] = {}
    shrinking: dict[str, str] = {}
    for declared in backbone.blocks:
        blocks = [block for known, block in sites if known is declared]
        size = sum(p.numel() for block in blocks for p in block.parameters())
        numbers[declared.path] = f"{len(blocks)} blocks, {size / 1e6:.1f} M parameters"
        for mlp in declared.mlps:
            streams = ElasticConfig.model_fields["width_streams"].default
            shrinks = "shrinks" if mlp.stream in streams else f"keeps its width unless width_streams has {mlp.stream!r}"
            shrinking[f"{declared.path}: {mlp.up} to {mlp.down}"] = f"{mlp.stream} stream, {shrinks}"
    total = sum(p.numel() for p in transformer.parameters())
    _print(
        "model",
        {
            "pipeline": index["_class_name"],
            "transformer": type(transformer).__name__,
            "backbone": backbone.name,
            "blocks": str(len(sites)),
            "parameters": f"{total / 1e6:.1f} M",
        },
    )
    _print("blocks", numbers)
    _print("MLPs", shrinking)


def _adapter(target: str) -> None:
    from elastic_dit import checkpoint

    adapter = checkpoint.read(target)
    card = adapter.card
    parts = {
        "routers": adapter.part("routers"),
        "changed backbone weights": adapter.part("transformer"),
        "LoRA": adapter.part("lora"),
    }
    sizes = {
        name: f"{sum(t.numel() for t in part.values()) / 1e6:.2f} M parameters, "
        f"{sum(t.numel() * t.element_size() for t in part.values()) / 1e6:.1f} MB"
        for name, part in parts.items()
        if part
    }
    _print("adapter", {"base model": card.base_model, "fingerprint": card.base_fingerprint[:12]} | sizes)
    _print("config", {name: str(value) for name, value in card.elastic.model_dump(mode="json").items()})


def _from_hub(target: str) -> None:
    """A Hub id: a pipeline if it has the index of one, else an adapter."""
    from diffusers import DiffusionPipeline

    try:
        DiffusionPipeline.load_config(target)
    except Exception:  # no pipeline, no such repository, no network: reading it as an adapter tells which
        _adapter(target)
    else:
        _model(target)


def _print(title: str, facts: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    console = Console()
    console.print(table)
    console.print()
