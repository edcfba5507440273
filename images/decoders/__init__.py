"""The formats of image files, each by the library that keeps its values whole."""
