"""The training objective: from a batch of stored bits to the loss, with corrupted history and corrected labels.

In comes a `Batch` (pretrain/data/batch.py) and the model; out comes the loss, with its parts by scale and frame. Read objective.py
first, then teacher_forcing.py (what the model is fed and must answer). packed_row.py and sequence_parallel.py lay the same tokens
out for short and for very long sequences; counter_rng.py draws all random numbers.
"""
