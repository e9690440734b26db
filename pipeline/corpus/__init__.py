"""The raw videos: which ones there are, what is known about them, and a local file of each.

In: the `corpus` section. Out: `SourceVideo`s in a fixed order; local paths, content digests, captions.
Read listing.py first.
"""
