"""The output files of ``detection.predict``: overlays, results and label files."""
