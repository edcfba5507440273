"""What removes detections of the same object: soft-NMS, for both engines."""
