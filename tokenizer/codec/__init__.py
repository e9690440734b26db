"""The door to a trained tokenizer: frames to packed bits and back.

In comes a tokenizer folder (tokenizer.json, tokenizer.safetensors); out come `Encoded` bits and frames, whole or in chunks.
Begin with `codec.py`.
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
