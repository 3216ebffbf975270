"""What stands behind `Model`.

A file belongs here only if `model` delegates to it, or if it examines a model.
"""
