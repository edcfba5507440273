"""Pretraining by the fully convolutional masked autoencoder (FCMAE), and work on its encoders."""
