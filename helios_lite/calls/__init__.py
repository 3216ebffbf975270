"""One file for each method of Trainer, and what all calls share.

What is here is the order around a training or an evaluation, and no step of the loop.
"""
