"""What `videoar eval` takes, tiny and untrained: a tokenizer, an exported model, held-out shards of a real video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cluster.config import Config, load
from pipeline.corpus.fetch import content_digest
from pipeline.records import Bucket, Clip, clip_key, clip_times
from pipeline.shards.writer import EncodedClip
from pipeline.video import Request, read_clips
from tests.helpers import exported_run, made_shards, training
from tokenizer.codec import VideoCodec

BUCKET = Bucket.parse("f009x32x40")
FPS = 8.0


def make(folder: Path, video: Path, clips: int = 8) -> Config:
    """Write all into `folder`; the configuration is FOLDER/c.yaml."""
    spec = exported_run.make(folder)
    made_shards.of_clips(folder / "held-out", encoded(VideoCodec.load(folder / "tokenizer"), video, clips), spec)
    (folder / "c.yaml").write_text(
        f"run: {{dir: {folder}/run}}\ntokenizer: {{weights: {folder}/tokenizer}}\n"
        f"curriculum: {{validation: [{folder}/held-out]}}\nsample: {{guidance: [1, 1], guidance_end: 1, fps: 8}}\n"
    )
    return load(folder / "c.yaml")


def encoded(codec: VideoCodec, video: Path, clips: int) -> list[EncodedClip]:
    """Clips that follow each other by a quarter of a second, from a part of the picture."""
    digest = content_digest(video)
    found = []
    for number in range(clips):
        begin = number / 4
        key = clip_key(digest, begin, FPS, BUCKET)
        clip = Clip(
            key,
            str(video),
            digest,
            begin,
            begin + BUCKET.frames / FPS,
            FPS,
            BUCKET,
            f"clip {number} of a longer name",
            crop="100:80:8:8",
        )
        request = Request(clip_times(clip), BUCKET.height, BUCKET.width, clip.crop)
        frames = next(read_clips(video, [request]))
        bits = codec.encode(torch.from_numpy(np.array(frames))[None]).bits[0]
        found.append(EncodedClip(clip=clip, bits=bits.numpy().tobytes()))
    return sorted(found, key=lambda each: each.clip.key)


TRAINING = """
model: {{layers: 1, width: 32, heads: 2, text_length: 12}}
curriculum:
  shards: [{0}/held-out]
  validation: [{0}/held-out]
  stages: [{{name: short, steps: 30, mix: [{{bucket: f009x32x40, batch: 4}}]}}]
train: {{learning_rate: 0.01, warmup: 3, dtype: float32, micro_batch: 4, threads: 1}}
deepspeed: {{zero_optimization: {{stage: 3}}}}
metrics: {{enabled: false}}
"""


def train(folder: Path) -> Path:
    """Train a model for some steps on the held-out shards of `make`'s folder, under the real launcher; return the configuration."""
    path = folder / "trained.yaml"
    text = (folder / "c.yaml").read_text().replace(f"{folder}/run", f"{folder}/trained")
    kept = [line for line in text.splitlines() if not line.startswith("curriculum")]
    path.write_text("\n".join(kept) + TRAINING.format(folder))
    training.train(path, 1, folder / "trained")
    return path
