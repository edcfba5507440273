"""Records of a run: environment, metrics, trackers, time, memory and energy, intervals."""
