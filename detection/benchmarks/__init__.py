"""Speed, memory and complexity of detection, as the tables of ``tools/benchmark.py``."""
