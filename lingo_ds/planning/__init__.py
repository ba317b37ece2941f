"""Every number of a run before a weight is loaded: steps, micro-batch, memory, sharding.

What a job costs on other machines is in `cost`.
"""
