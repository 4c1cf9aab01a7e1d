"""Two ranks that share out the tokens take one route, and compute what one rank computes."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from diffusers import ContextParallelConfig

from elastic_dit import Plan
from elastic_dit.backbones import backbones
from tiny import Tiny, TinyElastic, run

RANKS, STEPS = 2, 3


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    if not torch.accelerator.is_available():
        torch.accelerator.device_count = lambda: 1  # diffusers divides by the number of accelerators
    tiny = TinyElastic(Tiny(backbones["flux"]))
    steps = tiny.steps(2, STEPS)
    for inputs in steps:  # as many text tokens as divide among the ranks
        inputs["encoder_hidden_states"], inputs["txt_ids"] = (
            inputs["encoder_hidden_states"][:, :4],
            inputs["txt_ids"][:4],
        )
    random = np.random.default_rng(0)
    shape = (STEPS, tiny.blocks, 2)
    plan = Plan(random.random(shape) < 0.7, random.random(shape) < 0.5, random.choice([0.5, 1.0], size=shape))
    results = {}
    for split in (False, True):
        if split:
            tiny.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=RANKS))
        for name, forced in (("plan", plan), ("routed", None), ("late", None)):
            tiny.elastic.decision_lag = int(name == "late")
            tiny.elastic.force(forced)
            results[name, split] = torch.stack(run(tiny.transformer, steps))
            results[f"{name} keep", split] = torch.tensor(tiny.elastic.trace.array("keep"))
    torch.save(results, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_agree(tmp_path: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(rank_main, (str(tmp_path),), nprocs=RANKS)
    for rank in range(RANKS):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name in ("plan", "routed", "late"):
            torch.testing.assert_close(results[name, True], results[name, False], rtol=1e-4, atol=1e-5)
            assert torch.equal(results[f"{name} keep", True], results[f"{name} keep", False])
        assert 0 < results["routed keep", True].mean() < 1
