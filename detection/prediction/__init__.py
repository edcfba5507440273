"""What ``detection.predict`` writes."""
