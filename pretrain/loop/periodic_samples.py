"""Videos sampled during training, at the steps set by `train.samples` and `train.sample_every`.

In:  the engine at some step, captions of the first samples of the stage's stream.
Out: RUN/samples/step-XXXXXXXX/ with bits.safetensors, captions.json and, if the tokenizer's weights are at hand, mp4 files.

All ranks run the same forward passes (ZeRO-3 needs every rank); rank 0 writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from safetensors.torch import save_file

from cluster.config import Config, RunConfig
from cluster.runtime.process_group import Ranks
from pretrain.data.curriculum import CurriculumStep
from pretrain.data.sample_order import Slot
from pretrain.data.token_datasets import TokenDatasets
from pretrain.engine.config import TrainConfig
from pretrain.engine.engine import Engine
from pretrain.model.layers import Block
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig, stage_objective
from pretrain.objective.objective import Objective
from pretrain.sampling.guidance import SampleConfig
from pretrain.sampling.sampler import Sampler
from tokenizer.config import TokenizerConfig


class PeriodicSamples:
    """Samples a few videos whenever they are due."""

    def __init__(
        self, config: Config, datasets: TokenDatasets, text: TextTokenizer, ranks: Ranks, log: Callable[[str], None]
    ) -> None:
        self.config, self.datasets, self.text, self.ranks, self.log = config, datasets, text, ranks, log

    def due(self, at: CurriculumStep) -> bool:
        """Return whether to sample after this step."""
        train = self.config.get(TrainConfig)
        if not train.samples:
            return False
        return at.stage_ends or bool(train.sample_every and at.step % train.sample_every == 0)

    def make(self, engine: Engine, at: CurriculumStep) -> None:
        """Sample on all ranks; rank 0 writes."""
        config = self.config.get(SampleConfig)
        assert isinstance(engine.module, Objective)
        count = min(self.config.get(TrainConfig).samples, self.datasets.rows(at.stream, 0))
        captions = [self.datasets.caption(at.stream, Slot(source=0, row=row, epoch=0)) for row in range(count)]
        grid = self.datasets.grid(at.stream)
        window = stage_objective(at.stage, self.config.get(ObjectiveConfig)).window
        sampler = Sampler(engine.module.model, self.datasets.spec, self.text, config)
        with uncompiled(engine.module.model):
            bits = sampler.sample(captions, grid, seed=config.seed, window=window).cpu()
        if self.ranks.first:
            self._write(at, bits, captions, grid)
        self.ranks.barrier()

    def _write(self, at: CurriculumStep, bits: torch.Tensor, captions: list[str], grid: tuple[int, int, int]) -> None:
        folder = self.config.get(RunConfig).dir / "samples" / f"step-{at.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"bits": bits.contiguous()}, folder / "bits.safetensors")
        (folder / "captions.json").write_text(json.dumps({"captions": captions, "grid": grid}) + "\n")
        weights = self.config.get(TokenizerConfig).weights
        if not (weights / "tokenizer.json").is_file():
            self.log(f"samples of step {at.step}: bits are in {folder}; there is no tokenizer at {weights} to decode them")
            return
        from pipeline.video import write_video
        from tokenizer.codec import VideoCodec

        codec = VideoCodec.load(weights)
        if codec.spec.digest != self.datasets.spec.digest:
            self.log(
                f"samples of step {at.step}: bits are in {folder}; {weights} is not the tokenizer of the shards, so they are not decoded"
            )
            return
        stride = self.datasets.spec.spatial_stride
        videos = codec.decode(bits, grid[1] * stride, grid[2] * stride)
        for number, frames in enumerate(videos):
            write_video(folder / f"{number:03d}.mp4", frames.numpy(), self.config.get(SampleConfig).fps)
        self.log(f"samples of step {at.step}: {len(videos)} videos in {folder}")


@contextmanager
def uncompiled(model: VideoAR) -> Iterator[None]:
    """Run blocks as they are written: a few clips now and then are not worth compiling for their one-token steps."""
    blocks = [block for block in model.blocks if isinstance(block, Block)]
    kept = [block.compiled for block in blocks]
    try:
        for block in blocks:
            block.compiled = False
        yield
    finally:
        for block, choice in zip(blocks, kept, strict=True):
            block.compiled = choice
