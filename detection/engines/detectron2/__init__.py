"""The engine that trains with detectron2, the field's library."""
