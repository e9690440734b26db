"""`videoar tokenize`: the whole job, from a corpus to a finished SHARDS folder, and the Ray session that it runs on.

In: the configuration. Out: SHARDS with the index, and a `Summary`. Read tokenize.py first: it is the job from top to bottom;
dataset_json.py guards the settings of a folder, repair.py recomputes damaged shards, ray_session.py joins or starts Ray.
"""
