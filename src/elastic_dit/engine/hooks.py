"""The diffusers hooks that bring a transformer's calls, and its blocks', to the engine."""

import inspect
import time
from typing import TYPE_CHECKING, Any

from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from elastic_dit.engine.site import Site

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
        """The forward, between the engine's begin and, if it fails, its reset."""
        context = self.state._context
        start = time.perf_counter()
        try:
            arguments = dict(zip(self.names, args, strict=False)) | kwargs
            self.engine.begin(arguments, context.name if context else None)
            velocity = self.engine.forecast()
            if velocity is None:
                forward: Any = self.fn_ref.original_forward
                output = forward(*args, **kwargs)
                velocity = self.engine.computed(output[0])
                if velocity is output[0]:
                    return output
            return Transformer2DModelOutput(velocity) if arguments.get("return_dict", True) else (velocity,)
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


class BlockHook(ModelHook):
    """Around a block: it may run, run narrower or on fewer rows, or not at all."""

    def __init__(self, engine: "Engine", site: Site) -> None:
        super().__init__()
        self.engine, self.site = engine, site

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Hand the call to the engine."""
        return self.engine.block(self.site, args, kwargs)
