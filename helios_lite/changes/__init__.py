"""What a program has made, and what differs between two starts of a run: compared, said, and put in use.

What is here knows no file: it compares what a checkpoint holds with what `setup` has made.
"""
