"""Supervised fine-tuning: data, head, recipes, accuracy."""
