"""How good a model is: scores of dense and elastic models on the same data."""
