"""Architectures by name, and where pretrained weights come from."""
