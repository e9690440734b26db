"""What the training loop uses besides the step itself: resume, guard, metrics, validation, samples, stop requests.

In: the configuration, the engine, the ranks. Out: where to continue from, whether a step counts, reports on each step. The loop is
pretrain/train.py, to be read first; then `job.py`, `resume.py`, `guard.py` and `step_metrics.py`.
"""
