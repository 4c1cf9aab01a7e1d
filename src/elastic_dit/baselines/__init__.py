"""Other ways to make a diffusion transformer faster, one file each."""

from elastic_dit.baselines.base import Applied, Baseline, Task, baselines

__all__ = ["Applied", "Baseline", "Task", "baselines"]
