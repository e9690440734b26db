"""`videoar bench gpu`: the cases, the processes that run them, the file of their results, and the table.

In:  one card (or with --dry-run this CPU, at tiny shapes and through the same code).
Out: one JSON line per case as soon as it ends, and a table of the bars. Begin with `cases.py`; `benchmarks/bench_gpu.py` is the command.
"""
