"""Networks: placed on devices, replicated or sharded over ranks, and updated.

What is here handles tensors and collectives, and knows no Model.
"""
