"""What a training job will need, computed before a machine is rented: `videoar plan`.

In comes a configuration, the tokenizer's spec and a description of the machine; out comes memory per GPU, tokens, FLOPs, traffic
and hours of each stage. Read job_estimate.py first; memory.py and flops.py hold the formulas. Training uses flops.py too, for MFU.
"""
