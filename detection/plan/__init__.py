"""Plan a detection training from the labels, the images and the time that is available."""
