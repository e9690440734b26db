"""Work on finished SHARDS folders: `videoar shards verify, stat, show, rejects, exclude, compact`.

In: a SHARDS folder. Out: reports, pages and previews; or a folder from which sources were removed.
Read verify.py first.
"""
