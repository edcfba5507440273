"""How training images are changed at random, drawn from the config."""
