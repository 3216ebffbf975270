"""What a row of metrics consists of: reductions, rates, measurements.

What is here is arithmetic; only `rows` reads and writes files.
"""
