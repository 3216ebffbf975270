"""The version, by itself so that packaging and checkpoints can read it without importing torch."""

__version__ = "0.1.0"
