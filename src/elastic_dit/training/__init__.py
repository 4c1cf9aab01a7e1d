"""Training: data, losses over a batch, importance order, and the loop."""
