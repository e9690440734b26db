"""Samples in the loop: a few videos at each point that `train.samples` and `train.sample_every` name.

In:  the engine at some step, captions of the first samples of the stage's stream.
Out: RUN/samples/step-XXXXXXXX/ with bits.safetensors, captions.json and, where the tokenizer's weights lie, mp4 files.
Called by: train.py. All ranks run the same forwards (ZeRO-3 needs every rank); rank 0 writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from safetensors.torch import save_file

from cluster.config import Config, RunConfig
from cluster.runtime.process_group import Ranks
from pretrain.data.curriculum import CurriculumStep
from pretrain.data.sample_order import Slot
from pretrain.data.token_datasets import TokenDatasets
from pretrain.engine.config import TrainConfig
from pretrain.engine.engine import Engine
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.objective.config import ObjectiveConfig, stage_objective
from pretrain.objective.objective import Objective
from pretrain.sampling.guidance import SampleConfig
from pretrain.sampling.sampler import sample
from tokenizer.config import TokenizerConfig


class Showcase:
    """Makes samples when they are due."""

    def __init__(self, config: Config, corpus: TokenDatasets, text: TextTokenizer, ranks: Ranks, say: Callable[[str], None]) -> None:
        self.config, self.corpus, self.text, self.ranks, self.say = config, corpus, text, ranks, say

    def due(self, place: CurriculumStep) -> bool:
        """Whether to sample after this step."""
        train = self.config.get(TrainConfig)
        if not train.samples:
            return False
        return place.stage_ends or bool(train.sample_every and place.step % train.sample_every == 0)

    def make(self, engine: Engine, place: CurriculumStep) -> None:
        """Sample on all ranks; rank 0 writes."""
        config = self.config.get(SampleConfig)
        assert isinstance(engine.module, Objective)
        count = min(self.config.get(TrainConfig).samples, self.corpus.rows(place.stream, 0))
        captions = [self.corpus.caption(place.stream, Slot(source=0, row=row, epoch=0)) for row in range(count)]
        grid = self.corpus.grid(place.stream)
        window = stage_objective(place.stage, self.config.get(ObjectiveConfig)).window
        bits = sample(
            engine.module.model, self.corpus.spec, self.text, captions, grid, config, seed=config.seed, window=window
        ).cpu()  # fmt: skip
        if self.ranks.rank == 0:
            self._write(place, bits, captions, grid)
        self.ranks.barrier()

    def _write(self, place: CurriculumStep, bits: torch.Tensor, captions: list[str], grid: tuple[int, int, int]) -> None:
        folder = self.config.get(RunConfig).dir / "samples" / f"step-{place.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"bits": bits.contiguous()}, folder / "bits.safetensors")
        (folder / "captions.json").write_text(json.dumps({"captions": captions, "grid": grid}) + "\n")
        weights = self.config.get(TokenizerConfig).weights
        if not (weights / "tokenizer.json").is_file():
            self.say(f"samples of step {place.step}: bits in {folder}; no tokenizer at {weights}, so no videos")
            return
        from pipeline.video import write_video
        from tokenizer.codec import VideoCodec

        codec = VideoCodec.load(weights)
        if codec.spec.digest != self.corpus.spec.digest:
            self.say(
                f"samples of step {place.step}: bits in {folder}; {weights} is not the tokenizer of the shards, so no videos"
            )
            return
        stride = self.corpus.spec.spatial_stride
        videos = codec.decode(bits, grid[1] * stride, grid[2] * stride)
        for number, frames in enumerate(videos):
            write_video(folder / f"{number:03d}.mp4", frames.numpy(), self.config.get(SampleConfig).fps)
        self.say(f"samples of step {place.step}: {len(videos)} videos in {folder}")
