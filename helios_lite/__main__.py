"""The command `helios-lite`, run as `python -m helios_lite`."""

from helios_lite.tools.command import main

if __name__ == "__main__":
    main()
