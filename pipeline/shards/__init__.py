"""The format of token shards: what a SHARDS folder contains, how it is written, and how training reads it.

In: encoded clips, or a finished folder (local or at a URL). Out: tars with their commit records and the index, or samples.
Read layout.py (files and their order of commitment) and schemas.py (columns) first; then writer.py, manifest.py and dataset.py.
"""
