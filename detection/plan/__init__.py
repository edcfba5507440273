"""A training planned from the labels, the images and the minutes that one has."""
