"""Labels of other tools, read into COCO and written back, with what changed counted."""
