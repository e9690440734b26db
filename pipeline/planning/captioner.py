"""Captions by a model, for clips that have none: the interface, and an implementation with Hugging Face transformers.

In:  pictures of the spans of a video, in batches.
Out: a caption per span; the `VideoPlan` whose clips carry it, with the model's digest among their carried columns.

It runs where a video is planned. A planned part is committed together with its captions, so a job that is killed captions what has
no part yet and nothing twice. Batches are formed within a video, in the order of its spans, and decoding is greedy: a caption
depends on the video, the configuration and the weights alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from cluster.config.errors import ConfigError
from pipeline.config import CaptionerConfig
from pipeline.decoding.process import DecoderDied, DecoderProcess
from pipeline.decoding.retry import resumed
from pipeline.records import Clip, VideoPlan
from pipeline.video import Request, VideoError

COLUMN = "captioner"
"""Carried column with the digest of the model, for captions that a model wrote."""


class CaptionerError(ConfigError):
    """A captioner that cannot be loaded or used; the message names the folder and the fix."""


class Captioner(Protocol):
    """What planning needs of a captioning model."""

    digest: str
    """32 hex digits, which change with the model's files."""

    def describe(self, spans: Sequence[NDArray[np.uint8]]) -> list[str]:
        """Return a caption for each span, given as N pictures spread over its time, uint8 (N, H, W, 3)."""


class HuggingFaceCaptioner:
    """An image-to-text model of transformers (BLIP, GIT, LLaVA and similar ones) from a local folder of safetensors.

    A processor with a chat template gets all pictures and the prompt as one message; any other one gets the middle picture.
    """

    def __init__(self, config: CaptionerConfig) -> None:
        assert config.weights is not None
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise CaptionerError(
                'pipeline.captioner needs transformers: pip install "videoar-pretrain[caption]" on every host that plans'
            ) from error
        self._config = config
        self.digest = folder_digest(config.weights)
        self._device = "cuda" if config.gpus > 0 and torch.cuda.is_available() else "cpu"
        self._dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32  # the driver has settled `auto`
        # No code from the folder is run, no pickle is read and nothing is downloaded.
        common = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._processor: Any = AutoProcessor.from_pretrained(config.weights, **common)
            self._model: Any = AutoModelForImageTextToText.from_pretrained(
                config.weights, use_safetensors=True, dtype=self._dtype, **common
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CaptionerError(f"{config.weights}: no image-to-text model of transformers in safetensors: {first}") from error
        self._model.to(self._device).eval()
        self._chat = bool(getattr(self._processor, "chat_template", None))

    def describe(self, spans: Sequence[NDArray[np.uint8]]) -> list[str]:
        """Return a caption for each span of a batch."""
        config = self._config
        inputs: dict[str, Any] = {"return_tensors": "pt", "padding": True}
        if self._chat:
            content = [{"type": "image"}] * config.frames + [{"type": "text", "text": config.prompt}]
            message = [{"role": "user", "content": content}]
            text = self._processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
            inputs |= {"images": [list(span) for span in spans], "text": [text] * len(spans)}
        else:
            inputs["images"] = [span[len(span) // 2] for span in spans]
            if config.prompt:
                inputs["text"] = [config.prompt] * len(spans)
        batch = self._processor(**inputs).to(self._device, self._dtype)
        try:
            with torch.inference_mode():
                tokens = self._model.generate(**batch, max_new_tokens=config.max_tokens, do_sample=False, num_beams=1)
        except (torch.OutOfMemoryError, torch.AcceleratorError) as error:  # the host's fault, not that of one video
            raise CaptionerError(f"{config.weights}: the captioner does not run here: {str(error).splitlines()[0]}") from error
        if self._chat:  # the answer follows the question
            tokens = tokens[:, batch["input_ids"].shape[1] :]
        return [" ".join(text.split()) for text in self._processor.batch_decode(tokens, skip_special_tokens=True)]


@cache
def load(plain: str) -> Captioner:
    """Return the captioner of a configuration (as JSON), loaded once per process. Raises CaptionerError."""
    return HuggingFaceCaptioner(CaptionerConfig.model_validate_json(plain))


def folder_digest(folder: Path) -> str:
    """Return xxh3-128 (hex) over the names and bytes of a folder's files. Raises CaptionerError."""
    hasher = xxhash.xxh3_128()
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        for path in files:
            hasher.update(f"{path.name}\n{path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while chunk := file.read(1 << 22):
                    hasher.update(chunk)
    except OSError as error:
        raise CaptionerError(f"pipeline.captioner.weights: cannot read {error.filename}: {error.strerror}") from error
    if not files:
        raise CaptionerError(f"pipeline.captioner.weights: {folder} is empty")
    return hasher.hexdigest()


def with_captions(
    plan: VideoPlan,
    path: Path,
    shape: tuple[int, int],
    captioner: Captioner,
    config: CaptionerConfig,
    decoder: DecoderProcess,
    attempts: int,
) -> VideoPlan:
    """Return the plan with a caption for each span that has none; clips of one span share it.

    path: local file. shape: height and width as shown, pixels. attempts: how often the decoder may die over the video.
    A span that does not decode keeps its empty caption: the encoder reads the same frames and records why it is refused.
    """
    spans: dict[float, Clip] = {}
    for clip in plan.clips:
        if not clip.caption and (clip.begin not in spans or clip.end > spans[clip.begin].end):
            spans[clip.begin] = clip
    scale = config.side / min(shape)
    height, width = round(shape[0] * scale), round(shape[1] * scale)
    requests = [Request(_times(clip, config.frames), height, width, clip.crop) for clip in spans.values()]
    captions: dict[float, str] = {}
    waiting: list[tuple[float, NDArray[np.uint8]]] = []

    def flush() -> None:
        if waiting:
            texts = captioner.describe([frames for _, frames in waiting])
            captions.update(zip((begin for begin, _ in waiting), texts))
            waiting.clear()

    # The decoder's frames first, so that it is read to its end: one that is left earlier is killed.
    for frames, begin in zip(_readable(decoder, path, requests, attempts), spans):
        waiting.append((begin, frames))
        if len(waiting) == config.batch:
            flush()
    flush()
    clips = tuple(
        replace(clip, caption=captions[clip.begin], extra={**clip.extra, COLUMN: captioner.digest})
        if not clip.caption and captions.get(clip.begin)
        else clip
        for clip in plan.clips
    )
    return replace(plan, clips=clips)


def _readable(decoder: DecoderProcess, path: Path, requests: list[Request], attempts: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of each request up to the first that cannot be read; a dead decoder gets another try."""
    if not requests:
        return
    # What is not read is not lost: the encoder meets the same frames and records the refusal.
    with contextlib.suppress(DecoderDied, VideoError):
        yield from resumed(lambda: decoder.read(path, requests), attempts)
        return


def _times(clip: Clip, count: int) -> tuple[float, ...]:
    """Return the times of `count` frames of the clip: the middle of each of `count` equal parts."""
    frames = [int((k + 0.5) * clip.bucket.frames / count) for k in range(count)]
    return tuple(clip.begin + frame / clip.fps for frame in frames)
