"""The engine of the field."""
