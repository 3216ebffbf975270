"""Checkpoints: their names, atomic writing, safe reading, and which are kept.

No other room deletes a checkpoint. What is here knows no Model and no option.
"""
