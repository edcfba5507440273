"""Decoders of image files, each by a library that keeps all bits of the values."""
