"""Backbones: one declaration a file. See `base.py` for what a declaration says."""

from elastic_dit.backbones.base import MLP, Backbone, BlockList, backbone_of, backbones

__all__ = ["MLP", "Backbone", "BlockList", "backbone_of", "backbones"]
