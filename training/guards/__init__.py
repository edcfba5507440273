"""What keeps a run whole: its folder, checkpoints, resuming, signals, processes and workers."""
