"""From a split to the batches of a rank, from any position.

Everything here is a function of (seed, epoch, index), and must stay one.
"""
