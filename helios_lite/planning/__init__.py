"""What a training is going to do: when something is due, which learning rates its schedules set, and the whole plan.

What is here reads options, counters and schedules, and changes none of them.
"""
