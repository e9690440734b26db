"""Where a command on a SHARDS folder runs its tasks: in this process, on this machine's cores, or on the cluster of RAY_ADDRESS.

In:  the name of the work, its size, and how many workers were asked for.
Out: a `Runner` (pipeline.books.tasks). What the tasks write and find does not depend on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from cluster.runtime.progress import ProgressBar
from pipeline.books.tasks import Runner, serially
from pipeline.config import PipelineConfig

FEW = 64
"""Shard groups up to which a local Ray would take longer to start than the work takes."""


@contextmanager
def task_session(work: str, groups: int, workers: int = 0) -> Iterator[Runner]:
    """Give what runs the tasks of `work`. workers: 1 is this process, 0 all cores of this machine, or the cluster of RAY_ADDRESS.

    Raises JobError where Ray cannot be joined or started.
    """
    if workers == 1 or (workers == 0 and groups <= FEW and "RAY_ADDRESS" not in os.environ):
        yield partial(_here, work)
        return
    from pipeline.job.ray_session import session
    from pipeline.workers.book_tasks import on_ray

    with session(PipelineConfig(workers=workers or os.cpu_count() or 1)):
        yield partial(on_ray, work=work, stderr=True)


def _here(work: str, step: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    with ProgressBar(f"{work}: {step}", len(calls), stderr=True) as progress:
        for found in serially(step, function, calls):
            yield found
            progress.update()
