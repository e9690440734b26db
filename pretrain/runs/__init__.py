"""What a run folder tells about its run, and how two runs compare. Imports no other room of the package.

In: step reports, lines, the configuration, the ranks' view of their code. Out: metrics.jsonl, log/, status.json, run.json,
config.yaml, the Prometheus endpoint. Begin with `run_logger.py`; `provenance.py` says what a run was started with.
"""
