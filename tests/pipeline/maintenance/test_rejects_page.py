from __future__ import annotations

import base64
import io
import re
from pathlib import Path

from PIL import Image

from pipeline.books.merge import merge
from pipeline.books.parts import write_part
from pipeline.config import DecodeLimits, FilterConfig, PipelineConfig
from pipeline.decoding.process import DecoderProcess
from pipeline.maintenance.rejects_page import contact_sheet
from pipeline.planning.planner import plan_video
from pipeline.records import Bucket, SourceVideo
from pipeline.shards.manifest import Manifest


def test_refusals_are_shown_by_reason(tmp_path: Path, clips: Path) -> None:
    broken = tmp_path / "<b>broken.mp4"
    broken.write_text("no video")
    videos = [clips / "bikes.mp4", broken]
    config = PipelineConfig(buckets=(Bucket(frames=5, height=32, width=32),), filters=FilterConfig(min_luma=250), min_free_gb=0)
    manifest = Manifest(tmp_path / "shards")
    generation = manifest.begin_generation([SourceVideo(str(path)) for path in videos])
    with DecoderProcess(DecodeLimits()) as decoder:
        write_part(manifest.part(0), [plan_video(SourceVideo(str(path)), config, decoder) for path in videos])
    merge(manifest, generation, config, 1)
    refused = len([r for r in manifest.rejects() if r.reason == "black"])
    page = contact_sheet(tmp_path / "shards", tmp_path / "rejects.html", each=3).read_text()
    assert f"filters/black: {refused}" in page and "probe/unreadable: 1" in page and refused > 3
    pictures = re.findall(r"base64,([^']+)'", page)
    assert len(pictures) == 4 and "plan/too_short: 1" in page and page.count("no picture") == 1
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).size == (160, 90)
    assert "<b>broken" not in page and "&lt;b&gt;broken" in page, "names are text, not markup"
    assert "luma" in page


def test_nothing_refused(tmp_path: Path) -> None:
    assert "Nothing was refused" in contact_sheet(tmp_path, tmp_path / "page.html").read_text()
