"""The ConvNeXt encoder, its weights and its parameter groups."""
