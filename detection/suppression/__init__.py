"""Soft-NMS for both engines: it lowers the scores of repeated detections of an object."""
