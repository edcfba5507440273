"""Weights in other formats: sources, reading pickles safely, structure and layouts."""
