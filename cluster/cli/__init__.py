"""The command line `videoar`, the only room that imports the other three packages.

In: sys.argv. Out: a call of one function, and its exit code. Heavy imports are inside the commands, so that --help is fast.
Read `main.py` first: it lists the commands; data.py, shards.py, train.py and tools.py define them.
"""
