"""One call of the trainer: the loop (`training`, to be read first) and the parts that it moves forward."""
