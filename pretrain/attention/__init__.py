"""Attention under VideoAR's mask: the order of tokens, which token sees which, and the backends that compute it.

Read token_layout.py and attention.py first. `blocks` is block_attention.py; `flash` and `cudnn` are varlen_plan.py (integers),
flash_attention.py (calls, forward and backward) and own_scale.py (the kernels of the last few pairs).
"""
