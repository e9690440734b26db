"""The contract between tokenizer, shards and transformer: scales, bits, bytes. In come features, out come bits, and back.

Begin with `scale_schedule.py` (the scales of a frame), then `bsq.py` (features to bits and back), `bit_packing.py` (bits to the
bytes that shards hold) and `codec_spec.py` (the few numbers that everyone else needs, free of torch).
"""
