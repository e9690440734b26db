"""A trained tokenizer: frames to packed bits and back.

In comes a tokenizer folder (tokenizer.json, tokenizer.safetensors); out come `Encoded` bits and frames, whole or in chunks.
Begin with `codec.py`; `folder.py` reads and writes the folder, `image_import.py` makes one out of public image weights.
"""

from tokenizer.codec.codec import DecodeState, Encoded, EncodeState, VideoCodec
from tokenizer.codec.folder import JSON_NAME, WEIGHTS_NAME, CodecError, check_keys, digest, read_json, read_weights, save

__all__ = [
    "JSON_NAME",
    "WEIGHTS_NAME",
    "CodecError",
    "DecodeState",
    "EncodeState",
    "Encoded",
    "VideoCodec",
    "check_keys",
    "digest",
    "read_json",
    "read_weights",
    "save",
]
