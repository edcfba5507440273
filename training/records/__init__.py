"""What a run says and measures: facts, metrics, trackers, seconds and memory, intervals."""
