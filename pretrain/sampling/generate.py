"""Videos from a trained model: `videoar sample`.

In:  a configuration, prompts, and for continuation an image or a video.
Out: OUTPUT/000.mp4, ..., OUTPUT/sheet.png (one row a prompt) and OUTPUT/samples.json (what was asked, of which weights).
Called by: cluster.cli_train (`videoar sample`).

Frames are decoded and written chunk by chunk in a thread of their own while the transformer makes the next ones. Longer
videos than the model's clip are made by frame re-encoding (paper A3): the last frames are encoded anew as the prefix of the
next clip. Only these frames and those of the sheet are kept, so a video may be of any length.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cluster.config import Config, RunConfig
from cluster.runtime.progress import ProgressBar
from pipeline.records import Bucket
from pipeline.video import iter_frames
from pretrain.checkpoint.export import describe, export, load_model
from pretrain.data.config import CurriculumConfig
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.transformer import VideoAR
from pretrain.sampling.config import SampleConfig
from pretrain.sampling.contact_sheet import columns, sheet
from pretrain.sampling.sampler import SampleError, forwards, steps
from pretrain.sampling.video_sink import Reel
from tokenizer.codec import DecodeState, VideoCodec
from tokenizer.config import TokenizerConfig
from tokenizer.quantization.bit_packing import pack


@dataclass(frozen=True)
class Setting:
    """Everything that one call needs, loaded."""

    model: VideoAR
    codec: VideoCodec
    text: TextTokenizer
    config: SampleConfig
    bucket: Bucket
    window: int

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent frames, rows, columns."""
        return self.codec.spec.grid(self.bucket.frames, self.bucket.height, self.bucket.width)


def run(
    config: Config,
    prompts: Sequence[str],
    output: Path,
    *,
    prefix: Path | None = None,
    prefix_frames: int = 0,
    bucket: str | None = None,
    extend: int = 0,
    weights: Path | None = None,
    batch: int = 4,
    device: str = "cpu",
) -> list[Path]:
    """Sample one video a prompt and return the mp4 files.

    prefix: image or video that every sample continues. prefix_frames: pixel frames taken of a video (0 = the first half
    of the clip). bucket: shape of a clip, such as f017x128x128 (default: the last stage's). extend: how often the clip is
    continued by frame re-encoding. weights: exported model, checkpoint or run folder (default: run.dir). batch: prompts
    made together.
    Raises SampleError, ExportError, CodecError, TextError or VideoError for what cannot be met.
    """
    setting = load(config, bucket=bucket, weights=weights, device=device)
    start = None if prefix is None else read_prefix(prefix, setting, prefix_frames)
    known = 0 if start is None else len(start)
    output.mkdir(parents=True, exist_ok=True)
    latents, scales = setting.grid[0], len(setting.codec.spec.scales(*setting.grid[1:]))
    overlap = _overlap(setting, known) if extend else 0
    each = forwards(latents, scales, _latents(setting, known)) + extend * forwards(latents, scales, _latents(setting, overlap))
    length = setting.bucket.frames + extend * (setting.bucket.frames - overlap)
    files = [output / f"{number:03d}.mp4" for number in range(len(prompts))]
    rows: list[list[np.ndarray]] = []
    with ProgressBar("sampling", each * len(range(0, len(prompts), batch))) as progress:
        for first in range(0, len(prompts), batch):
            chosen = prompts[first : first + batch]
            begin = None if start is None else torch.from_numpy(np.stack([start] * len(chosen)))
            with Reel(files[first : first + batch], setting.config.fps, length, overlap) as reel:
                clip(setting, chosen, begin, reel.append, seed=setting.config.seed, first=first, progress=progress)
                for number in range(1, extend + 1):
                    seed = setting.config.seed + number
                    clip(setting, chosen, reel.last, reel.append, seed=seed, first=first, skip=overlap, progress=progress)
            rows += reel.pictures
    sheet(rows, [at < known for at in columns(length)]).save(output / "sheet.png")
    plain = {
        "prompts": list(prompts),
        "bucket": setting.bucket.name,
        "prefix": None if prefix is None else prefix.name,
        "prefix_frames": known,
        "extended": extend,
        "tokenizer_digest": setting.codec.spec.digest,
        "sample": setting.config.model_dump(mode="json"),
    }
    (output / "samples.json").write_text(json.dumps(plain, indent=1) + "\n")
    return files


def load(config: Config, *, bucket: str | None = None, weights: Path | None = None, device: str = "cpu") -> Setting:
    """Load model and tokenizer, and check that they belong together."""
    source = config.get(RunConfig).dir if weights is None else weights
    if (source / "model.json").is_file():
        exported, model = describe(source), load_model(source, device)
    else:
        with tempfile.TemporaryDirectory() as folder:
            exported, model = export(source, Path(folder)), load_model(folder, device)
    tokenizer = config.get(TokenizerConfig).weights
    codec = VideoCodec.load(tokenizer, device=device)
    if codec.spec.digest != exported.spec.digest:
        raise SampleError(
            f"{source} was trained on tokens of tokenizer {exported.spec.digest[:12]}, {tokenizer} is "
            f"{codec.spec.digest[:12]}: set tokenizer.weights to the tokenizer of the shards"
        )
    sampling = config.get(SampleConfig)
    if exported.objective.condition_drop == 0 and (sampling.guidance != (1.0, 1.0) or sampling.guidance_end != 1.0):
        raise SampleError(
            f"{source} was trained with objective.condition_drop 0, so its null token knows nothing and guidance cannot "
            "work: set sample.guidance=[1,1] sample.guidance_end=1"
        )
    stages = config.get(CurriculumConfig).stages
    window = exported.objective.window
    if stages and stages[-1].window is not None:
        window = stages[-1].window
    return Setting(model, codec, TextTokenizer.make(model.config), sampling, _bucket(config, bucket), window)


def read_prefix(path: Path, setting: Setting, wanted: int = 0) -> np.ndarray:
    """Return the first frames of an image or a video, uint8 (T, H, W, 3), T = 1 + stride * n.

    wanted: frames (0 = half of the clip, or 1 of an image). Raises SampleError when the video holds fewer.
    """
    stride, shape = setting.codec.spec.temporal_stride, setting.bucket
    half = 1 + (shape.frames // 2) // stride * stride
    count = wanted or half
    setting.codec.spec.grid(count, shape.height, shape.width)
    source = iter_frames(path, setting.config.fps, shape.height, shape.width)
    frames = [frame for _, frame in islice(source, count)]
    if len(frames) == 1 and not wanted:
        return np.stack(frames)
    if len(frames) < count:
        raise SampleError(
            f"{path}: {len(frames)} frames at {setting.config.fps:g} a second, the prefix takes {count}: give a longer video, "
            f"or fewer frames (1 + {stride}n)"
        )
    return np.stack(frames)


def clip(
    setting: Setting,
    prompts: Sequence[str],
    prefix_BTHWC: Tensor | None,
    take: Callable[[Tensor], None],
    *,
    seed: int,
    first: int = 0,
    skip: int = 0,
    progress: ProgressBar | None = None,
) -> None:
    """Make one clip a prompt, beginning with the decoded prefix, and hand its frames on as they come.

    take: called from the decoding thread with uint8 (B, T, H, W, 3), a few frames at a time and in order, while the
    transformer makes the next ones. skip: first frames that are not handed on.
    """
    bits = None if prefix_BTHWC is None else setting.codec.encode(prefix_BTHWC).bits
    state: DecodeState | None = None

    def decode(chunk: Tensor) -> None:
        nonlocal state, skip
        frames, state = setting.codec.decode_chunk(chunk, setting.bucket.height, setting.bucket.width, state)
        rest = frames[:, skip:]
        skip -= frames.shape[1] - rest.shape[1]
        if rest.shape[1]:
            take(rest)

    # One worker: chunks are decoded in order, each from the state that the one before left. A chunk waits for the one before
    # the last, so neither of the two sides runs far ahead, and a full disk ends the sampling.
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: list[Future[None]] = []
        for chunk in _frames(setting, prompts, bits, seed, first, progress):
            waiting.append(pool.submit(decode, chunk))
            if len(waiting) > 2:
                waiting.pop(0).result()
        for part in waiting:
            part.result()


def _frames(
    setting: Setting, prompts: Sequence[str], bits: Tensor | None, seed: int, first: int, progress: ProgressBar | None
) -> Iterator[Tensor]:
    """Packed bits of the prefix, then of each latent frame as soon as its last scale is made."""
    if bits is not None:
        yield bits
    spec, grid = setting.codec.spec, setting.grid
    maps: list[Tensor] = []
    for step in steps(
        setting.model, spec, setting.text, prompts, grid, setting.config,
        prefix=bits, seed=seed, first=first, window=setting.window,
    ):  # fmt: skip
        maps.append(step.bits)
        if progress is not None:
            progress.update()
        if step.scale + 1 == len(spec.scales(*grid[1:])):
            yield pack(maps)
            maps = []


def _bucket(config: Config, name: str | None) -> Bucket:
    """The named shape, or the longest of the last stage, or the first of the pipeline."""
    if name is not None:
        return Bucket.parse(name)
    stages = config.get(CurriculumConfig).stages
    if not stages:
        buckets: tuple[Bucket, ...] = config.sections["pipeline"].buckets
        return buckets[0]
    shapes = [(Bucket.parse(mix.bucket), mix.frames) for mix in stages[-1].mix]
    found = [shape.model_copy(update={"frames": frames or shape.frames}) for shape, frames in shapes]
    return max(found, key=lambda shape: (shape.frames, shape.height * shape.width))


def _latents(setting: Setting, frames: int) -> int:
    return 0 if frames == 0 else setting.codec.spec.grid(frames, setting.bucket.height, setting.bucket.width)[0]


def _overlap(setting: Setting, known: int) -> int:
    """Pixel frames that the next clip takes over: as the first prefix, or half a clip."""
    stride = setting.codec.spec.temporal_stride
    return known if known > 1 else 1 + (setting.bucket.frames // 2) // stride * stride
