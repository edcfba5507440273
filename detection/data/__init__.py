"""COCO files and images, read and checked once for training and evaluation."""
