"""What an encoder's channels are: feature analysis, collapse, channel maps."""
