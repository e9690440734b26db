"""Samples named and laid out as VBench reads them, so that VBench runs on them unchanged: `videoar eval --vbench PROMPTS`.

In:  VBench's own VBench_full_info.json, or a text file with one prompt a line.
Out: OUT/vbench/PROMPT-0.mp4 ... PROMPT-4.mp4 for each prompt, 25 of those of the dimension temporal_flickering, and
     OUT/vbench.json with what was asked for.

VBench looks for `{prompt}-{index}.mp4` (its evaluation takes --videos_path OUT/vbench). A video that is there is not made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.runtime.atomic_files import write_json
from cluster.runtime.progress import ProgressBar
from pretrain.evaluation.held_out import EvaluationError
from pretrain.sampling.generate import VideoGenerator
from pretrain.sampling.request import SampleRequest, read_prompts
from pretrain.sampling.video_sink import VideoSink

EACH, STATIC = 5, 25
"""Videos of a prompt, and of a prompt of the dimension temporal_flickering, whose still videos VBench filters out."""
LONGEST = 255
"""Bytes of a file name."""
_Job = tuple[int, str, int]
"""Number of the prompt, prompt, index of the video."""


@dataclass(frozen=True)
class Wanted:
    """One prompt and how many videos it takes."""

    prompt: str
    count: int


def read(path: Path, each: int = EACH) -> list[Wanted]:
    """Return the prompts of a file, each once. Raises EvaluationError or SampleError for one that cannot be a file's name."""
    if path.suffix == ".json":
        found = _full_info(path, each)
    else:
        found = dict.fromkeys(read_prompts(path)[0], each)
    for prompt in found:
        name = f"{prompt}-{STATIC - 1}.mp4"
        if "/" in prompt or "\0" in prompt or len(f".{name}.part".encode()) > LONGEST:
            raise EvaluationError(
                f"{path}: `{prompt[:60]}` cannot be the name of a file, as VBench wants it: shorten or reword it"
            )
    return [Wanted(prompt, count) for prompt, count in found.items()]


def _full_info(path: Path, each: int) -> dict[str, int]:
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text())
        found: dict[str, int] = {}
        for entry in entries:
            prompt = str(entry["prompt_en"])
            static = "temporal_flickering" in entry["dimension"]
            found[prompt] = max(found.get(prompt, 0), STATIC if static and each == EACH else each)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{path}: not VBench's VBench_full_info.json ({error}); give that, or a text file of prompts"
        ) from error
    return found


def _batches(missing: list[tuple[_Job, Path]], most: int) -> Iterator[list[tuple[_Job, Path]]]:
    """Yield what can be sampled together: one seed, prompts that follow each other."""
    together: list[tuple[_Job, Path]] = []
    for job, file in missing:
        follows = together and (job[0], job[2]) == (together[-1][0][0] + 1, together[-1][0][2])
        if together and (not follows or len(together) == most):
            yield together
            together = []
        together.append((job, file))
    if together:
        yield together


def make(generator: VideoGenerator, wanted: list[Wanted], output: Path, *, batch: int = 4) -> list[Path]:
    """Write the videos that are not there yet; return all. Video `index` of a prompt has the seed sample.seed + index.

    Raises SampleError that names the first prompt that is too long for the model.
    """
    SampleRequest([item.prompt for item in wanted]).check(generator.sampler.text)
    folder = output / "vbench"
    folder.mkdir(parents=True, exist_ok=True)
    seed = generator.sampler.config.seed
    jobs = [(number, item.prompt, index) for number, item in enumerate(wanted) for index in range(item.count)]
    jobs.sort(key=lambda job: (job[2], job[0]))  # videos of one seed share a batch
    files = [folder / f"{prompt}-{index}.mp4" for _, prompt, index in jobs]
    missing = [(job, file) for job, file in zip(jobs, files, strict=True) if not file.exists()]
    with ProgressBar("VBench", len(jobs), done=len(jobs) - len(missing), stderr=True) as progress:
        for together in _batches(missing, batch):
            (number, _, index), _ = together[0]
            with VideoSink([file for _, file in together], generator.fps, generator.bucket.frames) as sink:
                generator.clip([prompt for (_, prompt, _), _ in together], None, sink.append, seed=seed + index, first=number)
            progress.update(len(together))
    write_json(
        output / "vbench.json",
        {
            "prompts": {item.prompt: item.count for item in wanted},
            "bucket": generator.bucket.name,
            "fps": generator.fps,
            "tokenizer": generator.codec.spec.digest,
            "sample": generator.sampler.config.model_dump(mode="json"),
        },
    )
    return files
