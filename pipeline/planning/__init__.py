"""From a video to its planned clips.

In: `SourceVideo`s, the configuration, a decoder. Out: a `VideoPlan` per video.
Read planner.py first; filters.py scores spans, captioner.py captions them. pipeline.books sees all videos together.
Nothing here imports torch but the captioner, which planning tasks import only if it is configured.
"""
