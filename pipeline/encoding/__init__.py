"""Planned clips to committed shards, one shard group at a time.

In: the clips of a group (the table of clips), a codec. Out: the group's tars with their commit records, and a `GroupReport`.
Read encoder.py first; prefetch.py decodes ahead of the codec in threads, decode_clips.py turns clips into frames or refusals.
"""
