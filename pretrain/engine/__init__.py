"""DeepSpeed around the model: the engine, its configuration, the optimizer and the moving average of the weights.

In: a function that builds the Objective, the `train` and `deepspeed` sections, the ranks. Out: an `Engine` that runs forward,
backward and the optimizer step, and yields this rank's slices of the weights. Begin with `engine.py`.
"""
