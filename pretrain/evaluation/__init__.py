"""Scores of a trained model: `videoar eval`. In come a checkpoint and held-out shards with their videos, out come tables, JSON and plots.

Begin with `evaluate.py`, the order of the work. `held_out.py` brings the real clips, `generation.py` makes samples, predictions and
extensions and keeps them on disk, so that a stopped evaluation goes on. `networks.py` turns clips into features, `set_scores.py` and
`intervals.py` turn features into scores; `predictions.py`, `frame_scores.py` and `bit_loss.py` compare with each clip itself. `report.py`
shows it all. `vbench.py` names samples as VBench finds them.
"""
