"""The detection report's sections."""
