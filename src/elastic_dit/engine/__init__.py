"""What makes a diffusers transformer elastic at run time: hooks, runs, traces, plans."""
