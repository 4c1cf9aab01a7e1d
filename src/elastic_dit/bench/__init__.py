"""Measurements that write a `RunRecord`: dense and elastic side by side."""
