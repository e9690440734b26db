"""Videos from a trained model: `videoar sample`, and the samples that a training run makes.

In comes a model (or a run folder, a checkpoint), text prompts, and for continuation an image or a video; out come bits of latent
frames, or mp4 files. Read clip_state.py first: the steps of a frame, with the cache (kv_cache.py) and guidance (guidance.py, which
also holds the section `sample`). sampler.py makes clips of requests, clip_graphs.py records their steps as CUDA graphs. generate.py
decodes and writes (video_sink.py) while the sampler continues.
"""
