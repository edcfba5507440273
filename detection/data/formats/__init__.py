"""Import labels of other tools as COCO and export them; every change is counted."""
