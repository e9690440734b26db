"""What Ray raises, sorted: a lost worker, which is replaced, and an error of the work itself, which ends the job."""

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
"""What Ray raises when the process or host that did the work is gone."""


class JobError(RuntimeError):
    """The job cannot continue; the message says why and what to do. Running it again resumes."""


def cause(error: RayTaskError) -> BaseException:
    """Return the error as the task raised it, so that the driver's caller sees its class."""
    found = getattr(error, "cause", None)
    return found if isinstance(found, ValueError | OSError | RuntimeError) else error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its class where the text is empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
