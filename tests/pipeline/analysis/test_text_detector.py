"""Text coverage: burnt-in subtitles are seen, pictures without text are not, clips over the threshold are refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline import video
from pipeline.analysis.text_detector import TextDetector, text_network
from pipeline.config import CutConfig, DecodeLimits, FilterConfig, PipelineConfig
from pipeline.decoding.process import DecoderProcess
from pipeline.planning.planner import plan_video
from pipeline.records import Bucket, SourceVideo
from tokenizer.evaluation.pretrained import WeightsError


def test_coverage_of_real_pictures_with_and_without_text(clips: Path) -> None:
    detector = TextDetector(Path(text_network()))
    for name in ("bigbuckbunny.mp4", "carphone_pristine.mp4"):
        info = video.probe(clips / name, max_frames=10**6)
        (picture,) = video.read_frames(clips / name, [1.0], *TextDetector.size(info.height, info.width))
        assert detector.coverage(picture) < 0.002, f"{name} has no text"
        lines = picture.copy()
        for row in (0.6, 0.75, 0.9):
            at = (20, round(row * len(lines)))
            cv2.putText(lines, "A title over the whole picture", at, cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2)
        assert 0.03 < detector.coverage(lines) < 0.4


def test_a_span_with_subtitles_is_refused_and_its_score_kept(clips: Path, tmp_path: Path) -> None:
    """Four seconds of a real clip; text stands over the last two."""
    frames = [image for _, (_, image) in zip(range(100), video.iter_frames(clips / "carphone_pristine.mp4", 25, 288, 352))]
    for image in frames[50:]:
        for row in (150, 200, 250):
            cv2.putText(image, "a long subtitle here", (10, row), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (255, 255, 255), 2)
    path = tmp_path / "titled.mp4"
    video.write_video(path, np.stack(frames), 25)
    config = PipelineConfig(
        buckets=(Bucket(frames=9, height=32, width=32),), filters=FilterConfig(max_text=0.02), cuts=CutConfig(method="none")
    )
    with DecoderProcess(DecodeLimits()) as decoder:
        plan = plan_video(SourceVideo(str(path)), config, decoder)
        silent = plan_video(SourceVideo(str(path)), config.model_copy(update={"filters": FilterConfig()}), decoder)
    refused = [r for r in plan.rejects if r.reason == "text"]
    assert plan.clips and refused and len(plan.clips) + len(refused) == len(silent.clips)
    assert max(clip.end for clip in plan.clips) <= 2.5 and min(r.begin or 0.0 for r in refused) >= 1.0
    assert all(r.scores["text"] > 0.02 and "max_text" in r.detail for r in refused)
    assert all(clip.scores["text"] <= 0.02 for clip in plan.clips) and all("text" not in c.scores for c in silent.clips)


def test_a_missing_network_stops_the_job_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOAR_CACHE", str(tmp_path))
    video_file = tmp_path / "any.mp4"
    video_file.write_bytes(b"anything")
    text_network.cache_clear()
    try:
        with DecoderProcess(DecodeLimits()) as decoder, pytest.raises(WeightsError, match=r"text\.onnx.*missing; fetch"):
            plan_video(SourceVideo(str(video_file)), PipelineConfig(filters=FilterConfig(max_text=0.1)), decoder)
    finally:
        text_network.cache_clear()
