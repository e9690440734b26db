"""What docs/results.md shows is made of a proof's folder."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import av
import pytest
import safetensors.torch
import torch
from PIL import Image

from benchmarks import results


def _score(value: float) -> dict[str, Any]:
    span = {"mean": value, "interval_clips": [value - 1, value + 1], "interval_seeds": [value - 3, value + 3]}
    return {"clips": 12, **{key: span for key, _ in results.SETS}}


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    folder = tmp_path / "proof"
    for part in ("data", "run", "scores/videos"):
        (folder / part).mkdir(parents=True)
    described = {"name": "moving-mnist", "clips": {"train": 30, "test": 24}, "digest": "ab" * 32}
    (folder / "data" / "dataset.json").write_text(json.dumps(described))
    rows = [f"{split}/{number}.mp4,a clip" for split, count in described["clips"].items() for number in range(count)]
    (folder / "data" / "captions.csv").write_text("\n".join(["file,caption", *rows]) + "\n")
    (folder / "machines.json").write_text(json.dumps(["a fast CPU", "a slow CPU"]))
    (folder / "steps.json").write_text(json.dumps({"data": 60.0, "train": 600.0}))
    lines = [{"step": step, "bucket": "f009x64x64", "psnr": 10.0 + step} for step in range(1, 30)]
    (folder / "run" / "tokenizer-metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    lines = [{"step": step, "stage_name": "one" if step < 9 else "two", "loss": 1 / step} for step in range(1, 20)]
    (folder / "run" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    frame = {key: {"mean": 20.0, "interval_clips": None, "interval_seeds": None} for key in ("psnr", "ssim")}
    scores = {
        "model": "c" * 64, "tokenizer": "d" * 64, "seeds": [0, 1], "fps": 8.0, "samples": _score(123.4),
        "references": {"of": "other clips", "real": _score(50.0), "shuffled": _score(800.0)},
        "prediction": {"known_frames": 9, "predicted_frames": 8, "model": frame, "copy_last_frame": frame, "tokenizer": frame},
        "bits": {"loss": 0.3, "by_scale": {"1x1": 0.2, "2x2": 0.4}},
        "speed": {"steps_per_clip": 30, "seconds_per_clip": 0.5, "device": "CPU, 2 threads"},
        "drift": [{"frames": [0, 17], **_score(130.0)}, {"frames": [17, 34], **_score(210.0)}],
    }  # fmt: skip
    (folder / "scores" / "scores.json").write_text(json.dumps(scores))
    Image.new("RGB", (8, 8)).save(folder / "scores" / "sheet.png")
    draw = torch.Generator().manual_seed(0)
    for name, count, frames in (("samples-seed0", 12, 17), ("samples-seed1", 12, 17), ("extended3-seed0", 6, 68)):
        for number in range(0, count, 4):
            clips = torch.randint(0, 256, (min(4, count - number), frames, 16, 16, 3), dtype=torch.uint8, generator=draw)
            path = folder / "scores" / "videos" / f"{name}-{number // 4:05d}.safetensors"
            safetensors.torch.save_file({"frames": clips}, path)
    return folder


def test_tables_pictures_and_videos(proof: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["results.py", str(proof), "--out", str(out)])
    assert results.main() == 0
    text = (out / "moving-mnist.md").read_text()
    assert "| **samples** | 123.4 (120.4 to 126.4) |" in text, "the wider interval"
    assert "| shuffled real clips | 800 (797 to 803) |" in text and "| 17 to 34 | 210 (207 to 213) |" in text
    assert "Machine: a fast CPU; a slow CPU." in text, "where the proof ran, not where its results are shown"
    assert "together 11." in text and "30 forwards and 0.50 s a clip" in text and "abababababab" in text
    assert "| **model** | 20 | 20 | - |" in text, "a score whose network is not here"
    for name, frames in (("samples", 17), ("extended", 68)):
        with av.open(str(out / "videos" / f"moving-mnist-{name}.mp4")) as video:
            assert sum(1 for _ in video.decode(video=0)) == frames
    named = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} - {"SHA256SUMS"}
    assert set(named) == files and len(files) == 7
    assert all(hashlib.sha256((out / name).read_bytes()).hexdigest() == digest for name, digest in named.items())


def test_a_proof_without_scores_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["results.py", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        results.main()
    assert ended.value.code == 2 and "none has no scores yet: run benchmarks/proof_learning.py" in capsys.readouterr().err
