"""Detection configurations, shipped as package data."""
