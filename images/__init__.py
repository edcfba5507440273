"""Reads any image file or video as arrays, for every task."""
