"""Triton's depthwise convolution of the packed layout."""
