"""Measures speed and memory of the encoder and of pretraining, as tables of ratios."""
