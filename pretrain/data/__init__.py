"""From token shards to the batches that one rank trains on.

In comes the `curriculum` section and folders or URLs of token shards; out come micro-batches of equal shape. What a step trains on
is a pure function of (seed, data, curriculum, step), so the state of data loading is one integer. Read curriculum.py first (what is
step s?), then sample_order.py (which samples?), token_datasets.py (read them) and loader.py (all of it, in a thread).
"""
