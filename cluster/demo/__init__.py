"""`videoar demo`: the whole path on real video, in minutes on a CPU.

In: a folder of videos, or the default clips. Out: a run folder with a tokenizer, shards, checkpoints, samples and report.html.
Read `run.py` first: it calls the steps of `steps.py` in order, after `inputs.py` has checked what they need.
"""
