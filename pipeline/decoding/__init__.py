"""Decoding in a child process that can be killed, with limits on time and memory.

In: a local video and what is wanted of it. Out: a `Scan` or the frames of clips; a child that dies is `DecoderDied`.
Read process.py (the parent's end) first, then child.py; retry.py holds the rule for another try after a death.
"""
