"""Checkpoints: written beside training, whole or not there at all, read at any number of ranks, exported for others.

In: the engine, a `TrainState`, the EMA. Out: RUN/checkpoints/step-XXXXXXXX/ and back; a portable model folder. Begin with
`writer.py`, whose docstring shows the folder, then `reader.py`; `deepspeed_io.py` is the only file here that knows DeepSpeed.
"""
