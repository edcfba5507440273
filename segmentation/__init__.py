"""Semantic segmentation: UPerNet on the same encoder, its data, metrics, training and report."""
