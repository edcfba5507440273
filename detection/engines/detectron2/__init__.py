"""The engine that trains with detectron2."""
