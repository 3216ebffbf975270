"""One process and several: rank, device, RNG, signals; starting, watching and ending processes.

What is here needs no network and no option.
"""
