"""Tables of ratios for the encoder and pretraining."""
