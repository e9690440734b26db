"""Stages of `benchmarks/bench_corpus.py --clips N`: one module each, with synthetic books and no pixels.

Each has `prepare(folder, clips, options)`, which makes what the stage reads (not measured, kept by --out), and
`run(folder, clips, options)`, which runs in a process of its own and returns figures.
"""
