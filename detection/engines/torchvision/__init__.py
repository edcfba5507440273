"""The engine built on torchvision, which needs no compiler to install."""
