"""Videos from a trained model: `videoar sample`, and the samples that a training run makes.

In comes a model (or a run folder, a checkpoint), text prompts, and for continuation an image or a video; out come bits of latent
frames, or mp4 files. Read sampler.py first: the loop over frames and scales, with its cache (kv_cache.py) and guidance
(guidance.py, which also holds the section `sample`). generate.py decodes and writes (video_sink.py) while the sampler continues.
"""
