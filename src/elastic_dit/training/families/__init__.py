"""Pipelines that can be trained, one file each."""
