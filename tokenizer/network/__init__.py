"""The causal 3D autoencoder. In come frames, out come continuous features, and back; any chunking gives the same.

Begin with `network.py` (encoder and decoder), then `blocks.py` (what they are built of) and `causal_conv.py` (the convolution
that never looks ahead, and the `Stream` of its history). How they are computed: `convolution.py` and `frame_norm.py` on CPUs,
`cuda_kernels.py` on a card.
"""
