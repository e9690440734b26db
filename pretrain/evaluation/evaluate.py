"""`videoar eval`: all scores of a trained model on held-out clips, in one folder.

In:  a configuration whose curriculum.validation names held-out shards, a checkpoint, an `EvalRequest`.
Out: OUT/scores.json, OUT/plots.png, OUT/sheet.png, a table on the console; OUT/videos/ (what was sampled), OUT/plan.json (what is being
     scored). Run again, it goes on: videos and features that are there are not made again.

    held-out clips ─▶ references: other real clips, shuffled, frozen, through the tokenizer
          ├─▶ samples from their captions, one set per seed ─▶ FVD, KVD, frame-level Frechet, flicker, motion ─▶ extensions: drift
          ├─▶ predictions from their first frames ─▶ PSNR, SSIM, LPIPS, FVD against copying the last frame
          └─▶ their bits ─▶ loss by scale and frame
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cluster.config import Config
from cluster.config.differences import differences
from cluster.runtime.atomic_files import read_json, write_json, write_text
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.layout import DatasetError
from pretrain.data.config import CurriculumConfig
from pretrain.evaluation import report
from pretrain.evaluation.bit_loss import bit_loss
from pretrain.evaluation.generation import Generation, Part
from pretrain.evaluation.held_out import EvaluationError, HeldOut, OpenVideo, read
from pretrain.evaluation.networks import ScoringNetworks
from pretrain.evaluation.predictions import score_continued, score_predictions, through_tokenizer
from pretrain.evaluation.set_scores import RealSet, score
from pretrain.objective.config import ObjectiveConfig
from pretrain.sampling.generate import VideoGenerator
from tokenizer.evaluation.pretrained import cache
from tokenizer.evaluation.set_distances import FEWEST

CHOICE = 0
"""Seed of the choice of held-out clips: the same for every model, so that scores can be compared and features are found again."""


@dataclass(frozen=True)
class EvalRequest:
    """How much is sampled and scored."""

    clips: int = 64
    """Held-out clips, and samples of each seed."""
    seeds: int = 3
    """Seeds: sample.seed and those after it."""
    known: int = 0
    """Pixel frames that predictions are given; 0 = half a clip."""
    length: int = 4
    """Length of the extended videos, in clips; 1 = none."""
    drift_clips: int = 16
    """Videos that are extended."""
    batch: int = 4
    """Videos sampled together."""


def evaluate(
    config: Config,
    generator: VideoGenerator,
    output: Path,
    request: EvalRequest,
    *,
    video: OpenVideo,
    part: Part | None = None,
) -> dict[str, Any] | None:
    """Score a model and return scores.json; None if `part` is a share of the work, which only makes its videos.

    video: opens the source of a held-out clip. Raises EvaluationError for what cannot be scored, and for a folder that holds the
    evaluation of something else; CorruptSample or VideoError for clips that cannot be read.
    """
    data = config.get(CurriculumConfig)
    try:
        datasets = {folder: ShardDataset.open(folder, data.cache, int(data.cache_gb * 1e9)) for folder in data.validation}
    except DatasetError as error:
        raise EvaluationError(f"curriculum.validation: {error}") from error
    found = read(datasets, generator.codec.spec, generator.bucket, 2 * request.clips, seed=CHOICE, video=video)
    real = found.part(0, min(request.clips, len(found)))
    # Other clips of the same kind are what real videos score; with too few, the same clips have to serve, and the report says so.
    others = found.part(request.clips, len(found)) if len(found) == 2 * request.clips else real
    known = request.known or generator.overlap(0)
    stride = generator.codec.spec.temporal_stride
    if not 0 < known < generator.bucket.frames or (known - 1) % stride:
        raise EvaluationError(f"--known {known}: predictions take 1 + {stride}n frames of a clip of {generator.bucket.frames}")
    plan = _plan(config, generator, real, request)
    _begin(output, plan)
    generation = Generation(generator, real, output / "videos", batch=request.batch, part=part)
    seeds = [generator.sampler.config.seed + number for number in range(request.seeds)]
    if part is not None and part.of > 1:
        for seed in seeds:
            generation.samples(seed)
            generation.predictions(seed, known)
        return None
    networks = ScoringNetworks(cache() / "features", str(generator.codec.device))
    target = RealSet.make(networks, real.frames)
    decoded = through_tokenizer(generator, real.frames)
    samples = [generation.samples(seed) for seed in seeds]
    scores: dict[str, Any] = {
        "name": "eval",
        **plan,
        "seeds": seeds,
        "references": _references(networks, target, decoded, others, same=others is real),
        "samples": score(networks, target, [each.frames for each in samples], "samples"),
        "prediction": score_predictions(networks, generation, seeds, known, decoded),
        "continued": score_continued(networks, target, generation, seeds, known, decoded),
        "bits": bit_loss(generator, real, config.get(ObjectiveConfig)),
        "speed": {
            "steps_per_clip": generator.forwards(0),
            "seconds_per_clip": samples[0].seconds,
            "clips_together": request.batch,
            "device": _device_name(generator.codec.device),
        },
    }
    extended = _extensions(generation, request, seeds[0])
    if extended is not None:
        scores["drift"] = _drift(networks, target, extended, generator)
    scores["notes"] = _notes(networks, real, scores)
    write_text(output / "scores.json", json.dumps(scores, indent=1) + "\n")  # scales stay in their order
    report.write(output, scores, real.frames, samples[0].frames, generation.predictions(seeds[0], known).frames)
    return scores


def _plan(config: Config, generator: VideoGenerator, real: HeldOut, request: EvalRequest) -> dict[str, Any]:
    """Return what is scored, on what, and how: JSON values."""
    sample = generator.sampler.config.model_dump(mode="json")
    if sample["temperature_end"] is None:
        del sample["temperature_end"]  # plans of earlier versions have no such key, and their folders go on
    return {
        "model": parameters_digest(generator.sampler.model),
        "tokenizer": generator.codec.spec.digest,
        "bucket": generator.bucket.name,
        "fps": generator.fps,
        "held_out": {
            "folders": [str(folder) for folder in config.get(CurriculumConfig).validation],
            "clips": len(real),
            "available": real.available,
            "choice_seed": CHOICE,
            "digest": real.digest,
        },
        "request": asdict(request),
        "sample": sample,
    }


def _begin(output: Path, plan: dict[str, Any]) -> None:
    """Write OUT/plan.json, or check that it is the same. Raises EvaluationError."""
    path = output / "plan.json"
    if not path.exists():
        write_json(path, plan)
        return
    changed = list(differences(read_json(path), plan))
    if changed:
        raise EvaluationError(
            f"{output}: holds the evaluation of something else ({'; '.join(changed[:3])}): name another --output"
        )


def parameters_digest(model: nn.Module) -> str:
    """Return the sha256 of a model's parameters, by name."""
    whole = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        whole.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        whole.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def _references(networks: ScoringNetworks, real: RealSet, decoded: Tensor, others: HeldOut, *, same: bool) -> dict[str, Any]:
    """Return what is known about the scale of the scores: other real clips, the same shuffled and frozen, and through the tokenizer."""
    draw, frames = np.random.default_rng(CHOICE), others.frames.shape[1]
    shuffled = torch.stack([clip[draw.permutation(frames).tolist()] for clip in others.frames])
    sets = {
        "shuffled": shuffled,
        "frozen": others.frames[:, :1].expand_as(others.frames).contiguous(),
        "tokenizer": decoded,
    }
    if not same:
        sets = {"real": others.frames, **sets}
    return {
        "of": "the same clips" if same else "other clips",
        **{name: score(networks, real, [each], name) for name, each in sets.items()},
    }


def _extensions(generation: Generation, request: EvalRequest, seed: int) -> Tensor | None:
    """Return extended videos, None if none are asked for."""
    generator, count = generation.generator, min(request.drift_clips, len(generation.held_out))
    frames = generator.bucket.frames
    if request.length < 2 or count < 2:
        return None
    added = frames - generator.overlap(0)
    return generation.extensions(seed, count, -(-(request.length - 1) * frames // added)).frames


def _drift(networks: ScoringNetworks, real: RealSet, videos: Tensor, generator: VideoGenerator) -> list[dict[str, Any]]:
    """Return the scores of each clip's length of the extended videos, in order of time."""
    frames = generator.bucket.frames
    segments = []
    for begin in range(0, videos.shape[1] - frames + 1, frames):
        found = score(
            networks, real, [videos[:, begin : begin + frames].contiguous()], f"frames {begin} to {begin + frames - 1}"
        )
        segments.append(
            {"frames": [begin, begin + frames], "seconds": [begin / generator.fps, (begin + frames) / generator.fps], **found}
        )
    return segments


def _notes(networks: ScoringNetworks, real: HeldOut, scores: dict[str, Any]) -> list[str]:
    """Return why scores are missing or to be read with care."""
    notes = []
    if networks.missing:
        notes.append(
            f"weights not fetched: {', '.join(networks.missing)}; their scores are left out. Fetch: python -m tokenizer.evaluation.fetch"
        )
    if real.frames.shape[1] < 9:
        notes.append(f"FVD and KVD take clips of at least 9 frames, not {real.frames.shape[1]}")
    if len(real) < FEWEST:
        notes.append(f"too few clips for FVD without its bias: {FEWEST} are needed on each side, {len(real)} are held out")
    asked = scores["request"]["clips"]
    if len(real) < asked:
        notes.append(f"{len(real)} held-out clips of this shape, {asked} were asked for")
    if scores["references"]["of"] == "the same clips":
        notes.append(
            "too few held-out clips for references from other clips: shuffled and frozen are of the same clips, and score too well"
        )
    return notes


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
