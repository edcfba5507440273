"""Image-level self-supervised training: the fully convolutional masked autoencoder."""
