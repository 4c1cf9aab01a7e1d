"""The paper and what goes beyond it, one idea a file, in plain torch.

| file | section | equations |
|---|---|---|
| `router.py` | 3.2 Router architecture | 4-6 |
| `gating.py` | 3.2 Adaptive block skipping | 7, 8, 10 |
| `width.py` | 3.2 Adaptive MLP width reduction | 11-13, 16 |
| `mixed_width.py` | the same for rows that differ in width | 16 |
| `cache.py` | 3.3 Block-wise caching | 18, 19, Algorithm 1 |
| `objective.py` | 3.2, 3.3 Budgets and training objective | 9, 14, 15, 17 |
| `block.py` | Algorithm 1, and the training forward | 8, 10, 13, 19 |
| `cost.py` | what a decision costs in FLOPs | - |
| `router_stack.py` | all routers of a backbone, and the condition they share | 4 |
| `ready_routers.py`, `fused_router.py` | the same for all blocks at once, and in a GPU kernel | 4-6 |
| `eager.py` | what stays outside of compiled graphs | - |
| `budget_dial.py`, `budget_embedding.py` | beyond the paper: one model for every budget | - |
| `allocation.py`, `step_selection.py` | beyond it: a forward's share of a budget, a prompt's number of steps | - |
| `forecast.py`, `guidance.py` | beyond it: steps and guidance branches left out | - |
"""
