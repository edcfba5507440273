"""The engine built on torchvision, which pip alone can install."""
