"""A contact sheet of rejects: an HTML page of thumbnails by reason, to see at a glance whether the thresholds are right.

In:  the table of rejects of a SHARDS folder, and those of its videos that can still be read.
Out: one self-contained HTML file.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from cluster.runtime.atomic_files import committing
from pipeline.config import DecodeLimits
from pipeline.corpus import fetch
from pipeline.decoding.process import DecoderDied, DecoderProcess
from pipeline.records import Reject
from pipeline.shards.layout import excluded, hidden
from pipeline.shards.manifest import Manifest
from pipeline.video import Request, VideoError

_HEIGHT, _WIDTH = 90, 160
_STYLE = (
    "body{font:14px system-ui;margin:2em;background:#fff;color:#222}h2{margin:1.5em 0 .3em}"
    "figure{display:inline-block;width:162px;margin:4px;vertical-align:top;font-size:11px;overflow-wrap:anywhere}"
    "img,.none{width:160px;height:90px;background:#ddd;display:block}.none{line-height:90px;text-align:center;color:#777}"
)


def contact_sheet(folder: str | Path, out: str | Path, *, each: int = 12, limits: DecodeLimits | None = None) -> Path:
    """Write the page: for each stage and reason its count and up to `each` thumbnails, spread evenly over the rejects.

    A video that cannot be shown has an empty frame with its message; one that was taken down is not mentioned.
    """
    folder, path = Path(folder), Path(out)
    gone = excluded(folder)
    reasons: dict[str, list[Reject]] = {}
    for reject in Manifest(folder).rejects():
        reasons.setdefault(f"{reject.stage}/{reject.reason}", []).append(reject)
    parts = []
    with DecoderProcess(limits or DecodeLimits(seconds=20, stall_seconds=10)) as decoder:
        for reason, rejects in sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0])):
            shown = [reject for reject in rejects if not hidden(reject.source, gone)]
            step = max(1, len(shown) // each)
            figures = "".join(_figure(reject, decoder) for reject in shown[::step][:each])
            parts.append(f"<h2>{html.escape(reason)}: {len(rejects)}</h2>\n{figures}")
    page = f"<!doctype html><meta charset='utf-8'><title>Refusals of {html.escape(folder.name)}</title><style>{_STYLE}</style>"
    body = "\n".join(parts) or "<p>Nothing was refused.</p>"
    with committing(path) as temporary:
        temporary.write_text(f"{page}\n<h1>Refusals of {html.escape(folder.name)}</h1>\n{body}\n")
    return path


def _figure(reject: Reject, decoder: DecoderProcess) -> str:
    picture = _thumbnail(reject, decoder)
    image = f"<img alt='' src='data:image/jpeg;base64,{picture}'>" if picture else "<div class='none'>no picture</div>"
    span = "" if reject.begin is None or reject.end is None else f" {reject.begin:.2f} to {reject.end:.2f} s"
    scores = ", ".join(f"{name} {value:g}" for name, value in sorted(reject.scores.items()))
    lines: Sequence[str] = [Path(reject.source).name + span, scores or reject.detail]
    return f"<figure title='{html.escape(reject.detail, quote=True)}'>{image}{'<br>'.join(html.escape(line) for line in lines)}</figure>"


def _thumbnail(reject: Reject, decoder: DecoderProcess) -> str:
    """Return the middle frame of the refused span (the first frame of a whole video) as a base64 JPEG; empty if unreadable."""
    at = 0.0 if reject.begin is None or reject.end is None else (reject.begin + reject.end) / 2
    try:
        with fetch.local(reject.source) as path:
            (frames,) = decoder.read(path, [Request((at,), _HEIGHT, _WIDTH)])
    except (VideoError, DecoderDied):
        return ""
    buffer = io.BytesIO()
    Image.fromarray(frames[0]).save(buffer, "JPEG", quality=70)
    return base64.b64encode(buffer.getvalue()).decode()
