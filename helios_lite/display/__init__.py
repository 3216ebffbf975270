"""What people see: banner, tables, bars, lines and the log.

What is here makes text, and computes no metric.
"""
