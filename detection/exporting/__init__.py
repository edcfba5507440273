"""A detector as a graph without Python."""
