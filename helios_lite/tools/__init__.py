"""The command `helios-lite`: trains from TOML files, and shows what runs have written."""
