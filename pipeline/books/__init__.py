"""The books of a SHARDS folder: planned parts are merged into the tables of clips and rejects, commit records into the index.

In: planned parts, commit records. Out: the tables, at a constant cost per clip and in memory that does not grow with the corpus.
Read merge.py first; exact_copies.py and near_copies.py find duplicates, shard_groups.py cuts, index.py ends a job.
"""
