"""The torchvision engine's detector as a graph for export, and its runtimes and their AP."""
