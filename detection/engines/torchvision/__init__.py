"""The engine that pip alone can install."""
