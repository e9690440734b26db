"""Training of the tokenizer: the GAN loop. In come the configuration and batches of clips, out goes a tokenizer folder.

Begin with `train.py` (the loop), then `trainer.py` (one step) and `autoencoder.py` (what is trained). `schedule.py` decides what
each step uses, `losses.py` and `discriminator.py` what it minimises; `engine.py` is DeepSpeed, `checkpoint.py` what a run resumes from.
"""
