"""Videos for scores, a batch at a time, kept on disk: samples from text, predictions from first frames, extensions.

In:  a `VideoGenerator`, held-out captions and frames, the numbers of the seeds.
Out: `Videos`: uint8 clips and the seconds that each took.

OUT/videos/NAME-00000.safetensors holds one batch. A batch that is there is not made again, so that a stopped evaluation goes on; and
several processes can share the work: process I of N makes the batches whose number leaves the rest I when divided by N.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cluster.runtime.atomic_files import committing
from cluster.runtime.progress import ProgressBar
from pretrain.evaluation.held_out import EvaluationError, HeldOut
from pretrain.sampling.generate import VideoGenerator


@dataclass(frozen=True)
class Videos:
    """Clips that were made together."""

    frames: Tensor
    """uint8 (B,T,H,W,3)."""
    seconds: float
    """Seconds of one clip, sampling and decoding, in a batch of the size that was asked for."""


@dataclass(frozen=True)
class Part:
    """Which batches this process makes: those whose number leaves the rest `index` when divided by `of`."""

    index: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read `I/N`, I from 0 to N - 1. Raises EvaluationError."""
        index, _, of = text.partition("/")
        if not (index.isdecimal() and of.isdecimal() and int(index) < int(of)):
            raise EvaluationError(f"--part {text}: write I/N, such as 0/4 for the first of four processes")
        return cls(int(index), int(of))


class Generation:
    """All videos of one evaluation."""

    def __init__(
        self, generator: VideoGenerator, held_out: HeldOut, folder: Path, *, batch: int = 4, part: Part | None = None
    ) -> None:
        self.generator, self.held_out, self.folder, self.batch = generator, held_out, folder, batch
        self.part = part or Part()
        # Captions that are too long are cut, as in training.
        self._cutting = replace(generator, sampler=replace(generator.sampler, cut=True))

    def samples(self, seed: int) -> Videos:
        """Return one clip per held-out caption."""

        def make(begin: int, end: int) -> Tensor:
            return self._clip(self.held_out.captions[begin:end], None, seed, begin)

        return self._all(f"samples-seed{seed}", len(self.held_out), make)

    def predictions(self, seed: int, known: int) -> Videos:
        """Return one clip per held-out clip that begins with its first `known` frames (as decoded) and its caption."""

        def make(begin: int, end: int) -> Tensor:
            prefix = self.held_out.frames[begin:end, :known]
            return self._clip(self.held_out.captions[begin:end], prefix, seed, begin)

        return self._all(f"predictions{known}-seed{seed}", len(self.held_out), make)

    def extensions(self, seed: int, count: int, times: int) -> Videos:
        """Return the first `count` samples of a seed extended `times` times by frame re-encoding (paper A3)."""
        overlap, first = self.generator.overlap(0), self.samples(seed).frames

        def make(begin: int, end: int) -> Tensor:
            video = first[begin:end]
            for number in range(1, times + 1):
                following = self._clip(self.held_out.captions[begin:end], video[:, -overlap:], seed + 1000 * number, begin)
                video = torch.cat((video, following[:, overlap:]), dim=1)
            return video

        return self._all(f"extended{times}-seed{seed}", count, make)

    def _clip(self, captions: tuple[str, ...], prefix: Tensor | None, seed: int, first: int) -> Tensor:
        """Return clips uint8 (B,T,H,W,3)."""
        made: list[Tensor] = []
        self._cutting.clip(captions, prefix, made.append, seed=seed, first=first)
        return torch.cat(made, dim=1)

    def _all(self, name: str, count: int, make: Callable[[int, int], Tensor]) -> Videos:
        """Return `count` videos, those of this process's batches alone where the work is shared."""
        found, seconds = [], []
        with ProgressBar(name, count, stderr=True) as progress:
            for number, begin, end in self._batches(count):
                path = self.folder / f"{name}-{number:05d}.safetensors"
                if not path.exists():
                    began = time.perf_counter()
                    frames = make(begin, end)
                    took = (time.perf_counter() - began) / (end - begin)
                    with committing(path) as temporary:
                        safetensors.torch.save_file({"frames": frames.contiguous()}, temporary, {"seconds": repr(took)})
                with safetensors.safe_open(path, framework="pt") as file:
                    found.append(file.get_tensor("frames"))
                    seconds.append(float(file.metadata()["seconds"]))
                progress.update(end - begin)
        if not found:
            return Videos(torch.empty(0, *self.held_out.frames.shape[1:], dtype=torch.uint8), 0.0)
        # The first batch also warms up (graphs, caches): the median tells what a clip costs.
        return Videos(torch.cat(found), sorted(seconds)[(len(seconds) - 1) // 2])

    def _batches(self, count: int) -> Iterator[tuple[int, int, int]]:
        for number, begin in enumerate(range(0, count, self.batch)):
            if number % self.part.of == self.part.index:
                yield number, begin, min(count, begin + self.batch)
