"""The transformer: tokens of text and video in, hidden states and bit logits out.

In comes a `Layout` (token_layout.py: which token is which), text ids and the features that feed each video token; out come hidden
states of the video tokens, and from the head their bit logits or the bit loss. Read token_layout.py, rope.py, attention.py and
transformer.py, in this order; block_attention.py and fused_ops.py make it fast and can be read later.
"""
