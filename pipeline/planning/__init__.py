"""From a video to its planned clips, and from all planned videos to the shard groups of a folder.

In: `SourceVideo`s, the configuration, a decoder. Out: a `VideoPlan` per video; clips.parquet and rejects.parquet of a generation.
Read planner.py first; filters.py scores spans, captioner.py captions them, duplicates.py and merge.py see all videos together.
Nothing here imports torch but the captioner, which planning tasks import only if it is configured.
"""
