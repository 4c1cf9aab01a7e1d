"""The diffusers hooks that bring a transformer's calls, and its blocks', to the engine."""

import inspect
import time
from typing import TYPE_CHECKING, Any

import torch
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from elastic_dit.backbones.base import IMAGE
from elastic_dit.engine.site import Site, take_rows

if TYPE_CHECKING:
    from elastic_dit.engine.engine import Engine


class RootHook(ModelHook):
    """Around the transformer: tells the engine where in which run a forward is."""

    _is_stateful = True

    def __init__(self, engine: "Engine") -> None:
        super().__init__()
        self.engine = engine
        self.names = list(inspect.signature(engine.transformer.forward).parameters)
        # diffusers sets the cache context on any StateManager it finds on a stateful hook
        self.state = StateManager(BaseState)  # type: ignore[arg-type]

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The forward, or one for each guidance branch of its batch."""
        arguments = dict(zip(self.names, args, strict=False)) | kwargs
        if not self.engine.splits(arguments):
            context = self.state._context
            name = context.name if context else None
            if arguments.get("skip_layers") is not None:  # SD3's third branch, which has the prompt as well
                name = "skip_layers"
            return self._forward(args, kwargs, arguments, name)
        rows = torch.arange(len(arguments[IMAGE]))
        halves = dict(zip(("uncond", "cond"), rows.chunk(2), strict=True))
        velocities: dict[str, Tensor] = {}
        for branch in ("cond", "uncond"):  # in the order of the pipelines that run one after the other
            own = {name: take_rows(value, halves[branch], len(rows)) for name, value in arguments.items()}
            velocities[branch] = self._forward((), own, own, branch)[0]
        return _output(torch.cat([velocities[branch] for branch in halves]), arguments)

    def _forward(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], arguments: dict[str, Any], context: str | None
    ) -> Any:
        """One forward, between the engine's begin and, if it fails, its reset."""
        start = time.perf_counter()
        try:
            self.engine.begin(arguments, context)
            velocity = self.engine.forecast()
            if velocity is None:
                forward: Any = self.fn_ref.original_forward
                output = forward(*args, **kwargs)
                velocity = self.engine.computed(output[0])
                if velocity is output[0]:
                    return output
            return _output(velocity, arguments)
        except BaseException:
            self.engine.reset()
            raise
        finally:
            self.engine.end()
            self.engine.seconds += time.perf_counter() - start

    def reset_state(self, module: nn.Module) -> nn.Module:
        """What diffusers calls when a pipeline is done."""
        self.engine.reset()
        return module


def _output(velocity: Tensor, arguments: dict[str, Any]) -> Any:
    """What the transformer returns."""
    return Transformer2DModelOutput(velocity) if arguments.get("return_dict", True) else (velocity,)


class BlockHook(ModelHook):
    """Around a block: it may run, run narrower or on fewer rows, or not at all."""

    def __init__(self, engine: "Engine", site: Site) -> None:
        super().__init__()
        self.engine, self.site = engine, site

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Hand the call to the engine."""
        return self.engine.block(self.site, args, kwargs)
