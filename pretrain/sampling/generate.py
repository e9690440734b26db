"""Videos from a trained model: `videoar sample`.

In:  a configuration, prompts, and for continuation an image or a video.
Out: OUTPUT/000.mp4, ..., OUTPUT/sheet.png (one row per prompt) and OUTPUT/samples.json (the request and the weights it used).

Frames are decoded and written chunk by chunk in a thread of their own while the transformer samples the next ones. Videos longer
than the model's clip are made by frame re-encoding (paper A3): the last frames are encoded again as the prefix of the next clip.
Only these frames and those of the contact sheet stay in memory, so a video may be of any length.

Legend: B prompts, T pixel frames, H x W pixels, C = 3 colors.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cluster.config import Config, RunConfig
from cluster.config.precision import hardware, settle
from cluster.runtime.progress import ProgressBar
from pipeline.records import Bucket
from pipeline.video import iter_frames
from pretrain.checkpoint.export import describe, export, load_model
from pretrain.checkpoint.train_state import TrainedStage
from pretrain.data.config import CurriculumConfig
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.sampling.clip_graphs import ClipGraphs
from pretrain.sampling.guidance import SampleConfig, SampleError, check
from pretrain.sampling.request import SampleRequest, differences
from pretrain.sampling.sampler import Sampler, steps_of
from pretrain.sampling.video_sink import VideoSink, contact_sheet, sheet_frames
from tokenizer.codec import DecodeState, VideoCodec
from tokenizer.config import TokenizerConfig

FPS = 8.0
"""Frames per second of videos by weights that do not say."""


def run(
    config: Config,
    request: SampleRequest,
    output: Path,
    *,
    bucket: str | None = None,
    fallback: str | None = None,
    weights: Path | None = None,
    device: str = "cpu",
) -> list[Path]:
    """Generate one video per prompt and return the mp4 files; arguments as for `VideoGenerator.load`.

    Raises SampleError, ExportError, CodecError, TextError or VideoError for a request that cannot be met.
    """
    generator = VideoGenerator.load(config, bucket=bucket, fallback=fallback, weights=weights, device=device)
    request.check(generator.sampler.text)
    start = None if request.prefix is None else generator.read_prefix(request.prefix, request.prefix_frames)
    known = 0 if start is None else len(start)
    output.mkdir(parents=True, exist_ok=True)
    overlap = generator.overlap(known) if request.extend else 0
    each = generator.forwards(known) + request.extend * generator.forwards(overlap)
    length = generator.bucket.frames + request.extend * (generator.bucket.frames - overlap)
    files = [output / f"{number:03d}.mp4" for number in range(len(request.prompts))]
    rows: list[list[np.ndarray]] = []
    seed = generator.sampler.config.seed
    with ProgressBar("sampling", each * len(range(0, len(files), request.batch))) as progress:
        for first in range(0, len(files), request.batch):
            prompts = request.prompts[first : first + request.batch]
            begin = None if start is None else torch.from_numpy(np.stack([start] * len(prompts)))
            with VideoSink(files[first : first + request.batch], generator.fps, length, overlap) as sink:
                generator.clip(prompts, begin, sink.append, seed=seed, first=first, progress=progress)
                for number in range(1, request.extend + 1):
                    generator.clip(
                        prompts, sink.last, sink.append, seed=seed + number, first=first, skip=overlap, progress=progress
                    )
            rows += sink.pictures
    contact_sheet(rows, [at < known for at in sheet_frames(length)]).save(output / "sheet.png")
    plain = {
        "prompts": list(request.prompts),
        "bucket": generator.bucket.name,
        "prefix": None if request.prefix is None else request.prefix.name,
        "prefix_frames": known,
        "extended": request.extend,
        "tokenizer_digest": generator.codec.spec.digest,
        "window": generator.window,
        "fps": generator.fps,
        "sample": generator.sampler.config.model_dump(mode="json"),
    }
    (output / "samples.json").write_text(json.dumps(plain, indent=1) + "\n")
    return files


@dataclass(frozen=True)
class VideoGenerator:
    """A trained model and the tokenizer of its tokens, loaded and checked against each other."""

    sampler: Sampler
    codec: VideoCodec
    bucket: Bucket
    """Shape of a clip."""
    window: int
    """Latent frames of history that a frame attends to; 0 = all."""
    fps: float = FPS
    """Frames per second of a clip."""

    @classmethod
    def load(
        cls,
        config: Config,
        *,
        bucket: str | None = None,
        fallback: str | None = None,
        weights: Path | None = None,
        device: str = "cpu",
    ) -> VideoGenerator:
        """Load model and tokenizer. Raises SampleError if they do not belong together.

        bucket: shape of a clip, such as f017x128x128 (default: the longest of the stage that the weights were trained in). fallback:
        the shape for weights that do not say and a configuration without stages. weights: exported model, checkpoint or run
        folder (default: run.dir). What differs from training is printed.
        """
        source = config.get(RunConfig).dir if weights is None else weights
        sampling = config.get(SampleConfig)
        settled = settle("sample.dtype", sampling.dtype, [hardware(device)])
        print(settled.line, flush=True)
        sampling, dtype = sampling.model_copy(update={"dtype": settled.dtype}), getattr(torch, settled.dtype)
        if (source / "model.json").is_file():
            exported, model = describe(source), load_model(source, device, dtype)
        else:
            with tempfile.TemporaryDirectory() as folder:
                exported, model = export(source, Path(folder), dtype="float32"), load_model(folder, device, dtype)
        tokenizer = config.get(TokenizerConfig).weights
        codec = VideoCodec.load(tokenizer, device=device)
        if codec.spec.digest != exported.spec.digest:
            raise SampleError(
                f"{source} was trained on tokens of tokenizer {exported.spec.digest[:12]}, {tokenizer} is "
                f"{codec.spec.digest[:12]}: set tokenizer.weights to the tokenizer of the shards"
            )
        check(
            sampling, null_token=exported.model.null_token, condition_drop=exported.objective.condition_drop, model=str(source)
        )
        trained = exported.trained
        shape = _bucket(config, bucket, fallback, trained)
        lines = [] if trained is None else differences(trained, shape, sampling)
        if exported.averaged and exported.start_share > 0.01:
            lines.append(
                f"{exported.start_share:.0%} of the moving average is the random start; take the weights of `videoar export --no-average`"
            )
        for line in lines:
            print(f"warning: {source}: {line}", file=sys.stderr, flush=True)
        fps = sampling.fps or (trained.fps if trained is not None else 0) or FPS
        sampler = Sampler(model, codec.spec, TextTokenizer.make(model.config), sampling, graphs=ClipGraphs())
        window, stages = exported.objective.window, config.get(CurriculumConfig).stages
        if trained is None and stages and stages[-1].window is not None:
            window = stages[-1].window
        return cls(sampler, codec, shape, window, fps)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent frames, rows, columns of a clip."""
        return self.codec.spec.grid(self.bucket.frames, self.bucket.height, self.bucket.width)

    def forwards(self, known: int) -> int:
        """Return how many forwards a clip takes that begins with `known` pixel frames."""
        latents, rows, columns = self.grid
        prefix = self.codec.spec.grid(known, self.bucket.height, self.bucket.width)[0] if known else 0
        return (latents - prefix) * steps_of(self.sampler.model.config, self.codec.spec.scales(rows, columns))

    def overlap(self, known: int) -> int:
        """Return the pixel frames that a next clip takes over: as many as the first prefix has, or half a clip."""
        return known if known > 1 else self._half

    @property
    def _half(self) -> int:
        stride = self.codec.spec.temporal_stride
        return 1 + (self.bucket.frames // 2) // stride * stride

    def read_prefix(self, path: Path, wanted: int = 0) -> np.ndarray:
        """Return the first frames of an image or a video, uint8 (T, H, W, 3), T = 1 + stride * n.

        wanted: frames (0 = half a clip, or 1 of an image). Raises SampleError if the video holds fewer.
        """
        shape, fps = self.bucket, self.fps
        count = wanted or self._half
        self.codec.spec.grid(count, shape.height, shape.width)
        frames = [frame for _, frame in islice(iter_frames(path, fps, shape.height, shape.width), count)]
        if len(frames) == 1 and not wanted:
            return np.stack(frames)
        if len(frames) < count:
            raise SampleError(
                f"{path}: {len(frames)} frames at {fps:g} per second, the prefix takes {count}: give a longer video, "
                f"or fewer frames (1 + {self.codec.spec.temporal_stride}n)"
            )
        return np.stack(frames)

    def clip(
        self,
        prompts: Sequence[str],
        prefix_BTHWC: Tensor | None,
        take: Callable[[Tensor], None],
        *,
        seed: int,
        first: int = 0,
        skip: int = 0,
        progress: ProgressBar | None = None,
    ) -> None:
        """Generate one clip per prompt, which begins with the prefix as decoded, and pass its frames on as they come.

        take: called from the decoding thread with uint8 (B, T, H, W, 3), a few frames at a time and in order, while the
        transformer samples the next ones. first: number of the first prompt. skip: first frames that are not passed on.
        """
        bits = None if prefix_BTHWC is None else self.codec.encode(prefix_BTHWC).bits
        made = self.sampler.frames(
            prompts, self.grid, seed=seed, first=first, prefix=bits, window=self.window, progress=progress
        )
        state: DecodeState | None = None
        decoding = _DecodeStream.make(self.sampler.model.start.weight.device)

        def decode(chunk: Tensor, ready: torch.cuda.Event | None) -> None:
            nonlocal state, skip
            with decoding.use(chunk, ready):
                frames, state = self.codec.decode_chunk(chunk, self.bucket.height, self.bucket.width, state)
                rest = frames[:, skip:].cpu()
            skip -= frames.shape[1] - rest.shape[1]
            if rest.shape[1]:
                take(rest)

        # One worker: chunks are decoded in order, each from the state that the previous one left. At most two chunks wait, so
        # neither side runs far ahead, and a full disk ends the sampling.
        with ThreadPoolExecutor(max_workers=1) as pool:
            waiting: list[Future[None]] = []
            for chunk in chain([] if bits is None else [bits], made):
                waiting.append(pool.submit(decode, chunk, decoding.mark()))
                if len(waiting) > 2:
                    waiting.pop(0).result()
            for part in waiting:
                part.result()


@dataclass(frozen=True)
class _DecodeStream:
    """Where frames are decoded: on a GPU a stream of its own, beside the steps of the next frame; on a CPU nothing special."""

    stream: torch.cuda.Stream | None

    @classmethod
    def make(cls, device: torch.device) -> _DecodeStream:
        return cls(torch.cuda.Stream(device) if device.type == "cuda" else None)

    def mark(self) -> torch.cuda.Event | None:
        """Return an event after all that was launched so far; to be called by the thread that samples."""
        return None if self.stream is None else torch.cuda.current_stream(self.stream.device).record_event()

    @contextmanager
    def use(self, chunk: Tensor, ready: torch.cuda.Event | None) -> Iterator[None]:
        """Run what is launched inside on the stream, once `chunk` is ready; to be called by the thread that decodes."""
        if self.stream is None or ready is None:
            yield
            return
        self.stream.wait_event(ready)
        chunk.record_stream(self.stream)
        with torch.cuda.stream(self.stream):
            yield


def _bucket(config: Config, name: str | None, fallback: str | None, trained: TrainedStage | None) -> Bucket:
    """Return the named shape, or the longest that was trained on; for weights that do not say, the longest of the last stage."""
    if name is not None:
        return Bucket.parse(name)
    if trained is not None:
        return Bucket.parse(trained.shapes[0])
    stages = config.get(CurriculumConfig).stages
    if not stages and fallback is not None:
        return Bucket.parse(fallback)
    if not stages:
        raise SampleError("no shape to sample: curriculum.stages is empty; name one with --bucket, such as f017x128x128")
    shapes = [Bucket.parse(mix.shape) for mix in stages[-1].mix]
    return max(shapes, key=lambda shape: (shape.frames, shape.height * shape.width))
