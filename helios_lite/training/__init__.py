"""One `fit`: the loop (`loop`, to be read first) and the parts that it moves forward.

A part alone writes its attributes.
"""
