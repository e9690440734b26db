"""The sampler: one forward of the transformer for each scale of each frame, over cached keys and values.

In:  a model, captions, the latent grid, and for continuation the bits of a prefix.
Out: packed bits of whole clips; or of one frame after the other, so that frames can be decoded while the next ones are sampled; or
     one scale after the other with its logits.

Legend: B captions, R rows of a forward (B, or 2 B under guidance: with condition, then without), P text tokens, K scales.

Here requests are checked and turned into tensors; the steps are in clip_state.py, their CUDA graphs in clip_graphs.py. A clip costs
(frames - prefix) x K forwards whatever the captions are, so ranks that sample together under ZeRO-3 stay in step. (A model that predicts
token by token takes as many forwards as a frame has tokens in the place of K.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.runtime.progress import ProgressBar
from pretrain.model.config import ModelConfig
from pretrain.model.text_tokenizer import PADDING, TextTokenizer
from pretrain.model.transformer import VideoAR
from pretrain.objective import counter_rng
from pretrain.sampling import guidance
from pretrain.sampling.clip_graphs import ClipGraphs, RecordedClip
from pretrain.sampling.clip_state import ClipShape, ClipState, SampledScale
from pretrain.sampling.guidance import SampleConfig, SampleError
from tokenizer.quantization.codec_spec import CodecSpec
from tokenizer.quantization.scale_schedule import Scales

TEXT_STEP = 32
"""Texts are padded to a multiple of this, so that captions of different lengths make clips of the same shape."""


@dataclass(frozen=True)
class Sampler:
    """A model with all that its samples depend on beside the request."""

    model: VideoAR
    spec: CodecSpec
    text: TextTokenizer
    config: SampleConfig

    graphs: ClipGraphs | None = None
    """Where CUDA graphs are kept; None runs each step from Python (training: ZeRO-3 gathers the weights of each step anew)."""
    cut: bool = False
    """Cut captions that are longer than model.text_length, as training does; else they are refused."""

    def sample(
        self,
        captions: Sequence[str],
        grid: tuple[int, int, int],
        *,
        seed: int,
        prefix: Tensor | None = None,
        window: int = 0,
        progress: ProgressBar | None = None,
    ) -> Tensor:
        """Return packed bits uint8 (B, frames * frame_bytes), the prefix included, on the model's device.

        captions: an empty one is sampled without a condition. grid: latent frames, rows, columns. prefix: uint8
        (B, n * frame_bytes) with n < frames. window: latent frames of history that a frame sees, 0 = all (as in training).
        progress: advanced by the forwards of each frame. Sample i depends on (seed, i) only.
        Raises SampleError or TextError for a request that cannot be met.
        """
        known = [] if prefix is None else [prefix.to(self.model.start.weight.device)]
        made = self.frames(captions, grid, seed=seed, prefix=prefix, window=window, progress=progress)
        return torch.cat([*known, *made], dim=1)

    def frames(
        self,
        captions: Sequence[str],
        grid: tuple[int, int, int],
        *,
        seed: int,
        first: int = 0,
        prefix: Tensor | None = None,
        window: int = 0,
        progress: ProgressBar | None = None,
    ) -> Iterator[Tensor]:
        """Return the packed bits uint8 (B, frame_bytes) of each new latent frame, in order, as soon as its last scale is sampled.

        Arguments as for `sample`. first: number of the first caption. What can be wrong with the request is raised, and CUDA
        graphs are recorded, before this returns.
        """
        shape, request = self._request(captions, grid, seed, first, prefix, window)
        steps = steps_of(self.model.config, shape.scales)
        run: Callable[[int], None]
        if self.graphs is not None and self.config.cuda_graphs and self.model.start.weight.is_cuda:
            clip = self._recorded(self.graphs, shape, progress)
            state, run = clip.state, clip.run
        else:
            state = self._state(shape)

            def run(frame: int) -> None:
                for _ in state.frame(frame):
                    pass

        state.load(*request)

        def made() -> Iterator[Tensor]:
            for frame in range(shape.known, shape.frames):
                run(frame)
                if progress is not None:
                    progress.update(steps, note=f"frame {frame + 1} of {shape.frames}")
                yield state.packed[frame].clone()

        return made()

    def steps(
        self,
        captions: Sequence[str],
        grid: tuple[int, int, int],
        *,
        seed: int,
        first: int = 0,
        prefix: Tensor | None = None,
        window: int = 0,
    ) -> Iterator[SampledScale]:
        """Yield the scales of a clip in order, each with its logits, and without CUDA graphs; arguments as for `frames`."""
        shape, request = self._request(captions, grid, seed, first, prefix, window)
        state = self._state(shape)
        state.load(*request)
        for frame in range(shape.known, shape.frames):
            yield from state.frame(frame)

    def check(self, captions: Sequence[str], grid: tuple[int, int, int]) -> None:
        """Raise what `sample` would raise before its first step."""
        self._request(captions, grid, 0, 0, None, 0)

    def _state(self, shape: ClipShape) -> ClipState:
        return ClipState(self.model, self.config, shape)

    def _recorded(self, graphs: ClipGraphs, shape: ClipShape, progress: ProgressBar | None) -> RecordedClip:
        """Return a recorded clip. Raises SampleError if the GPU has too little memory for it."""

        def say(note: str) -> None:
            if progress is not None:
                progress.update(0, note=note)

        try:
            return graphs.get(shape, lambda: self._state(shape), say)
        except torch.OutOfMemoryError as error:
            raise SampleError(
                f"too little GPU memory to record {shape.captions} clips of {shape.frames} latent frames together: sample fewer at "
                "a time, or set sample.cuda_graphs=false"
            ) from error

    def _request(
        self, captions: Sequence[str], grid: tuple[int, int, int], seed: int, first: int, prefix: Tensor | None, window: int
    ) -> tuple[ClipShape, tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """Return the shape of a clip and what is loaded into its state. Raises SampleError or TextError."""
        scales, count = self.spec.scales(*grid[1:]), len(captions)
        known = 0 if prefix is None else self._prefix_frames(prefix, grid, count)
        if len(scales) > self.model.config.max_scales:
            raise SampleError(
                f"grid {grid[1]}x{grid[2]} has {len(scales)} scales, model.max_scales is {self.model.config.max_scales}"
            )
        text_RP, length_R = self.conditions(captions)
        seeds_B = counter_rng.fold(torch.arange(first, first + count), seed)
        shape = ClipShape(count, text_RP.shape[0], text_RP.shape[1], grid[0], scales, known, window)
        return shape, (text_RP, length_R, seeds_B, prefix)

    def conditions(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return text (R, P) and its lengths (R): the captions, and as many null rows if any step is guided."""
        if not captions:
            raise SampleError("no caption: name at least one (an empty one samples without a condition)")
        is_guided, has_null = guidance.needed(self.config), self.model.config.null_token
        if is_guided and not has_null:
            raise SampleError(
                "guidance needs a null token and this model has none: set sample.guidance=[1,1] sample.guidance_end=1"
            )
        text, length = self.text.batch(captions, refuse=not self.cut)
        wanted = max(text.shape[1], min(self.text.limit, -(-text.shape[1] // TEXT_STEP) * TEXT_STEP))
        text = F.pad(text, (0, wanted - text.shape[1]), value=PADDING)
        if not has_null:
            return text, length
        text[length == 0, 0] = self.model.null
        length = length.clamp(min=1)
        if is_guided:
            null = torch.zeros_like(text)
            null[:, 0] = self.model.null
            text, length = torch.cat((text, null)), torch.cat((length, torch.ones_like(length)))
        return text, length

    def _prefix_frames(self, prefix: Tensor, grid: tuple[int, int, int], captions: int) -> int:
        """Return the latent frames of a prefix. Raises SampleError if it does not fit the request."""
        frames, rows, columns = grid
        size = self.spec.frame_bytes(rows, columns)
        if prefix.ndim != 2 or prefix.shape[0] != captions or prefix.shape[1] % size or not prefix.shape[1]:
            raise SampleError(
                f"prefix of shape {tuple(prefix.shape)}: {captions} captions on a {rows}x{columns} grid take "
                f"({captions}, n * {size}) bytes"
            )
        known = prefix.shape[1] // size
        if known >= frames:
            raise SampleError(f"the prefix has {known} latent frames, the clip {frames}: ask for more frames")
        return known


def steps_of(model: ModelConfig, scales: Scales) -> int:
    """Return how many forwards of the transformer a latent frame takes."""
    return sum(rows * columns for rows, columns in scales) if model.order == "tokens" else len(scales)
