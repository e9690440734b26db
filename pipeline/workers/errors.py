"""DOC from pipeline/workers/encode_pool.py."""

from __future__ import annotations

from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

LOST = (WorkerCrashedError, OutOfMemoryError, NodeDiedError, ObjectLostError, LocalRayletDiedError, RayActorError)
"""What Ray raises when the process or host that had the work is gone."""


class JobError(RuntimeError):
    """The job cannot go on; the message says why and what to do. Running again continues."""


def cause(error: RayTaskError) -> BaseException:
    """The error as the task raised it: the driver's caller shows it as one line."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, ValueError | OSError | RuntimeError) else error


def one_line(error: BaseException) -> str:
    """First line of an error's text, or its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
