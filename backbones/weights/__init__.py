"""Weights of other people's formats: where they come from, how they are read, what they are."""
