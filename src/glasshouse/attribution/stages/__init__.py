"""The stages that all gradient methods share.

steps (one backward pass a batch, pairs (a, g) of each module) -> passes (sums over shards) -> curvature
(eigenbases, damped inverses) -> scoring (query gradients against pairs); guards refuse, fitting splits rows
into shards, asking turns questions into units and numbers into tables.
"""
