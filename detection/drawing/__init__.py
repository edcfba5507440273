"""Boxes, masks and labels on images."""
