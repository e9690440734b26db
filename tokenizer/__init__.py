"""The video tokenizer: uint8 frames to multi-scale bits and back. From the ground up:

    config.py      the `tokenizer` section: network, losses, training
    quantization/  the contract with shards and transformer: scales, bits, packed bytes, CodecSpec
    network/       the causal 3D autoencoder
    codec/         a trained tokenizer: load, encode, decode, stream; import of public image weights
    evaluation/    reconstruction scores, and the pretrained networks that they need
    training/      the GAN loop that trains one

Nothing here knows videos or shards: `pipeline/tokenizer_jobs` brings the clips.
"""
