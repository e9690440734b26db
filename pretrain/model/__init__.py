"""The transformer: tokens of text and video in, hidden states and bit logits out.

In comes a `Layout` (pretrain/attention/token_layout.py: which token is which), text ids and the features that feed each video
token; out come hidden states of the video tokens, and from the head their bit logits or the bit loss. Read rope.py, layers.py and
transformer.py, in this order; fused_ops.py makes it fast and can be read later. Attention is a room of its own, pretrain/attention.
"""
