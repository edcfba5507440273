"""Grids of runs (the paper's ablations and a user's own), and studies of starting weights."""
