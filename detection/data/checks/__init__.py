"""What is wrong with a COCO data set: its file, its objects, its segmentations, its images."""
