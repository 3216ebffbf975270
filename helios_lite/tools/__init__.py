"""The command `helios-lite`: trains from TOML files, and shows what runs have written.

Each file parses, calls and prints; the trainer knows nothing of it.
"""
