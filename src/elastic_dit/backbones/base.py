"""A backbone is a declaration: which blocks, where the tokens are, where the MLPs are, where the time is.

To add one, write a file beside this one that registers a `Backbone`; the contract tests pick it up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from elastic_dit.errors import BackboneError
from elastic_dit.registry import Registry

IMAGE, TEXT = "hidden_states", "encoder_hidden_states"


@dataclass(frozen=True)
class MLP:
    """An MLP inside a block, by the paths of its two projections below the block."""

    up: str
    """D -> F, or D -> 2F where gated: its rows shrink."""
    down: str
    """F -> D: its columns shrink. Columns before the last F (FLUX's single blocks keep attention there) stay."""
    stream: Literal["image", "text"] = "image"
    """Whose tokens pass through; image where both do."""
    gated: bool = False
    """GEGLU or SwiGLU: `up` holds F value rows, then F gate rows."""


@dataclass(frozen=True)
class BlockList:
    """A `ModuleList` of equal blocks and what their forward takes and returns."""

    path: str
    """Where the list is, below the transformer."""
    returns: tuple[str, ...]
    """Names of the streams a block updates, in the order it returns them; they are arguments of the same name."""
    mlps: tuple[MLP, ...]
    """Its MLPs."""
    batched: tuple[str, ...] = ("temb",)
    """Its other arguments (also nested ones) whose tensors have the batch first."""


@dataclass(frozen=True)
class Backbone:
    """Everything the engine needs to know of one family of transformers."""

    name: str
    transformers: tuple[str, ...]
    """Class names of the transformers it fits."""
    blocks: tuple[BlockList, ...]
    """The lists, in running order."""
    timestep_embedder: str
    """Path of the submodule that returns the timestep embedding (B, D), alone or first in a tuple."""
    timestep_scale: float = 1.0
    """The timestep of pure noise, as the pipeline passes it: timesteps are noise levels 0..1 times this."""
    guidance_in_one_batch: bool = False
    """Whether the pipelines run guidance in one forward: the rows without the prompt, then as many with it."""
    text_mask: str | None = None
    """The block argument (B, T_text) that is true on text tokens which are no padding."""
    tiny: Callable[[], tuple[nn.Module, Callable[..., dict[str, Any]]]] | None = None
    """A small random transformer and a function (batch, seed) -> inputs of its forward, for tests and checks."""

    def dim(self, transformer: Any) -> int:
        """Model width D."""
        config = transformer.config
        return config.num_attention_heads * config.attention_head_dim

    def sites(self, transformer: nn.Module) -> list[tuple[BlockList, nn.Module]]:
        """Every block with its declaration, in running order.

        Raises:
            BackboneError: the transformer does not have the declared lists.
        """
        found: list[tuple[BlockList, nn.Module]] = []
        for declared in self.blocks:
            try:
                modules = transformer.get_submodule(declared.path)
            except AttributeError as error:
                raise BackboneError(
                    f"{type(transformer).__name__} has no {declared.path!r}, which backbone {self.name!r} declares"
                ) from error
            assert isinstance(modules, nn.ModuleList)
            found += [(declared, block) for block in modules]
        return found


backbones: Registry[Backbone] = Registry("backbone", "elastic_dit.backbones")


def backbone_of(transformer: nn.Module) -> Backbone:
    """The backbone that fits a transformer, by its class or a base class of it.

    Raises:
        BackboneError: none does; the message lists the classes that are known.
    """
    names = {cls.__name__ for cls in type(transformer).__mro__}
    for backbone in backbones.values():
        if names.intersection(backbone.transformers):
            return backbone
    known = sorted(name for backbone in backbones.values() for name in backbone.transformers)
    raise BackboneError(f"no backbone fits a {type(transformer).__name__}; transformers known: {', '.join(known)}")
