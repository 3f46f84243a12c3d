"""Neural architecture search for recommender models: the science, with torch and without a cluster.

A supernet is a net and a sampler; a net over a narrower space is the subnet; a strategy asks for members of a space and
is told how they did. Everything else is one published idea a file: operators, samplers, strategies, tasks, protocols,
datasets, methods.

Shape suffixes, everywhere: B batch, N fields or blocks, D width, T time, O output, I items, K ranks.
"""
