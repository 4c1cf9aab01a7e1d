"""`elastic-dit info`: what is installed, what a model is, what an adapter holds."""

from pathlib import Path
from typing import Annotated, Any

import typer

from elastic_dit.cli.setup import needs_extra, quiet_libraries
from elastic_dit.errors import CheckpointError


def info(
    target: Annotated[
        str | None,
        typer.Argument(metavar="MODEL_OR_ADAPTER", help="Folder or Hub id of a pipeline or an adapter."),
    ] = None,
) -> None:
    """Describe this installation, or a model, or an adapter."""
    if target is None:
        _installation()
    elif (Path(target) / "elastic_config.json").is_file():
        _adapter(target)
    elif Path(target).exists() and not (Path(target) / "model_index.json").is_file():
        raise CheckpointError(
            f"{target} has neither model_index.json nor elastic_config.json; expected a pipeline or an adapter folder"
        )
    else:
        _model_or_adapter(target)


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
    _print("pipelines that can be trained", {"": ", ".join(trainable)})


def _devices(here: Any) -> dict[str, str]:
    import torch

    gpus = {f"cuda:{index}": torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    return {"cpu": f"{here.device}, {here.threads} threads"} | gpus


def _model(target: str, index: dict[str, Any]) -> None:
    """From the config files alone: the weights are neither read nor fetched."""
    import diffusers
    import torch

    from elastic_dit.backbones import backbone_of
    from elastic_dit.config import ElasticConfig

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
    mlps: dict[str, str] = {}
    for declared in backbone.blocks:
        blocks = [block for known, block in sites if known is declared]
        size = sum(p.numel() for block in blocks for p in block.parameters())
        numbers[declared.path] = f"{len(blocks)} with {_millions(size)} parameters"
        for mlp in declared.mlps:
            shrinks = mlp.stream in ElasticConfig.of().width_streams
            name = f"{declared.path}: {mlp.up}, {mlp.down}"
            mlps[name] = f"{mlp.stream} stream, " + ("shrinks" if shrinks else "keeps its width")
    total = sum(p.numel() for p in transformer.parameters())
    _print(
        "model",
        {
            "pipeline": index["_class_name"],
            "transformer": type(transformer).__name__,
            "backbone": backbone.name,
            "blocks": str(len(sites)),
            "parameters": _millions(total),
        },
    )
    _print("blocks", numbers)
    _print("MLPs, by default", mlps)


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
        name: f"{_millions(sum(t.numel() for t in part.values()))} parameters, "
        f"{sum(t.numel() * t.element_size() for t in part.values()) / 1e6:.1f} MB"
        for name, part in parts.items()
        if part
    }
    _print("adapter", {"base model": card.base_model, "fingerprint": card.base_fingerprint[:12]} | sizes)
    _print("config", {name: str(value) for name, value in card.elastic.model_dump(mode="json").items()})


def _model_or_adapter(target: str) -> None:
    """A folder, or a Hub id: a pipeline if it has the index of one, else an adapter."""
    from elastic_dit.models.loading import pipeline_index

    quiet_libraries()
    try:
        index = pipeline_index(target)
    except CheckpointError:
        if Path(target).exists():
            raise
        _adapter(target)
    else:
        _model(target, index)


def _millions(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number < 1e8 else f"{number / 1e9:.2f} B"


def _print(title: str, facts: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    console = Console(highlight=False)
    console.print(f"[bold]{title}[/bold]")
    console.print(table)
    console.print()
