"""Random changes of training images, as the config asks for them."""
