"""Checks of a COCO data set: its file, objects, segmentations and images."""
