"""One net around the work on one video: whatever goes wrong with it is the outcome of that video, not the end of the job.

In:  the name of a video, and work on it.
Out: `VideoError` with the reason `unexpected` and the error's own text, in place of an error that nobody foresaw.

Passed on unchanged: what is already an outcome (`VideoError`, `DecoderDied`), and what concerns the host and would hit every other
video too (`DeviceError`, a full disk, a captioner that does not run, any other error that one of our packages defines for the user).
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.runtime.source_tree import PACKAGES
from pipeline.video import VideoError

UNEXPECTED = "unexpected"
"""Reason of a refusal by an error that nobody foresaw."""
_HOST = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)


def account(error: BaseException) -> str:
    """Return an error in one line: its class, its text and the place in the source where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' if text else ''}{text[:500]}{place}"


@contextmanager
def contained(name: str) -> Iterator[None]:
    """Turn an unforeseen error of the work on video `name` into VideoError."""
    try:
        yield
    except Exception as error:  # not swallowed: it becomes a refusal that carries the error's text
        ours = any(kind.__module__.partition(".")[0] in PACKAGES for kind in type(error).__mro__)
        if ours or (isinstance(error, OSError) and error.errno in _HOST):
            raise
        raise VideoError(UNEXPECTED, f"{name}: {account(error)}") from error
