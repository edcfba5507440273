"""Protects a run: its folder, checkpoints, resuming, signals, processes and loader workers."""
