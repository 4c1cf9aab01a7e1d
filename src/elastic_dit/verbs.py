"""The verbs: make a transformer elastic, load what makes it so, put it back as it was."""

import weakref
from pathlib import Path
from typing import Any

from torch import nn

from elastic_dit import checkpoint
from elastic_dit.config import ElasticConfig, preset
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.engine.offload import refuse_absent_weights
from elastic_dit.errors import BackboneError

_HANDLE = "_elastic_dit"


def elasticize(pipe_or_transformer: Any, config: ElasticConfig | str = "flux") -> ElasticModel:
    """Put hooks and fresh routers on a transformer; it computes what it did before, to the bit.

    Args:
        pipe_or_transformer: a diffusers pipeline, or the transformer alone.
        config: an `ElasticConfig`, or the name of one of `elastic_dit.PRESETS`. Without it, the paper's for FLUX,
            whatever the backbone.

    Raises:
        BackboneError: no backbone declares this transformer, or its weights are offloaded layer by layer.
        UnknownNameError: no such preset.
    """
    transformer = transformer_of(pipe_or_transformer)
    refuse_absent_weights(transformer, "make it elastic first, and offload it then")
    restore(transformer)
    config = preset(config) if isinstance(config, str) else config.model_copy()
    elastic = ElasticModel(transformer, config)
    if pipe_or_transformer is not transformer:
        elastic._engine.pipeline = weakref.ref(pipe_or_transformer)
    transformer.__dict__[_HANDLE] = elastic
    return elastic


def reroute(elastic: ElasticModel, config: ElasticConfig) -> ElasticModel:
    """Fresh routers, or another fixed route, on the weights as they are.

    Args:
        elastic: the model so far; its handle is not to be used any more, and its calibration, of other routes, is
            left behind.
        config: of the new one.
    """
    elastic._engine.detach()
    fresh = ElasticModel(elastic.transformer, config)
    fresh.weights = elastic.weights
    fresh._engine.pipeline = elastic._engine.pipeline
    elastic.transformer.__dict__[_HANDLE] = fresh
    return fresh


def load(pipe_or_transformer: Any, folder: str | Path) -> ElasticModel:
    """Make a transformer elastic with what `ElasticModel.save` wrote.

    Args:
        pipe_or_transformer: the base model the adapter was trained on.
        folder: an adapter folder, or the id of one on the Hub.

    Raises:
        CheckpointError: not an adapter, damaged, or made for a model whose weights have other names or shapes. One
            that differs in values alone, as a fine-tune does, is not told apart.
    """
    transformer = transformer_of(pipe_or_transformer)
    adapter = checkpoint.read(folder)
    checkpoint.check_base(transformer, adapter)
    elastic = elasticize(pipe_or_transformer, adapter.config)
    elastic.calibration = adapter.calibration
    try:
        checkpoint.apply(transformer, elastic.stack, elastic.weights, adapter)
    except BaseException:
        restore(transformer)
        raise
    return elastic


def restore(pipe_or_transformer: Any) -> None:
    """Undo `elasticize` or `load`: hooks off, replaced weights back. Weights trained in place stay trained.

    Raises:
        BackboneError: weights have to be put back, and are offloaded layer by layer.
    """
    transformer = transformer_of(pipe_or_transformer)
    elastic: ElasticModel | None = transformer.__dict__.get(_HANDLE)
    if elastic is not None:
        if elastic.weights.originals:
            refuse_absent_weights(transformer, "take that off first, with `pipe.remove_all_hooks()`")
        del transformer.__dict__[_HANDLE]
        elastic._engine.detach()
        elastic.weights.put_back(transformer)


def transformer_of(pipe_or_transformer: Any) -> Any:
    """The transformer of a pipeline, or the module itself."""
    transformer = getattr(pipe_or_transformer, "transformer", None)
    if not isinstance(transformer, nn.Module):
        transformer = pipe_or_transformer
    if not isinstance(transformer, nn.Module):
        raise BackboneError(
            f"expected a diffusers pipeline with a transformer, or a transformer; got a {type(transformer).__name__}"
        )
    return getattr(transformer, "_orig_mod", transformer)  # under torch.compile
