"""The tokenizer's jobs that need raw videos: training, scoring, side-by-side reconstruction.

In: the configuration, videos of the corpus. Out: a tokenizer folder; scores; an mp4. They live here because tokenizer/ must not
import pipeline/. Read main.py first; clip_sampler.py draws the training clips.
"""
