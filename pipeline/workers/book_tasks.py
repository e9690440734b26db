"""Steps of work on the books, run on Ray: a task that is lost is submitted again, an error of the work ends the job.

In:  a function of pipeline.books and its calls. Out: the results, in the order of the calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from cluster.runtime.progress import ProgressBar
from pipeline.workers.errors import LOST, JobError, cause, first_line

MAX_DEATHS = 3
"""Deaths of one task after which the job stops and names it."""


@ray.remote
def book_task(function: Callable[..., Any], call: tuple[Any, ...]) -> Any:
    """Run one call. Functions go by their names, as they are of modules."""
    return function(*call)


def on_ray(
    step: str,
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    *,
    work: str = "merge",
    stderr: bool = False,
) -> Iterator[Any]:
    """Run the calls of a step on the cluster, at most two per CPU at a time. Raises JobError; what tasks have written is kept."""
    ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: deque[tuple[int, Any]] = deque()
    todo = deque(range(len(calls)))

    def submit(number: int) -> Any:
        return book_task.options(name=f"{step} {number}", max_retries=0).remote(function, calls[number])

    with ProgressBar(f"{work}: {step}", len(calls), stderr=stderr) as progress:
        while todo or running:
            while todo and len(running) < ahead:
                number = todo.popleft()
                running.append((number, submit(number)))
            number, ref = running.popleft()
            yield _result(step, number, ref, submit)
            progress.update()


def _result(step: str, number: int, ref: Any, submit: Callable[[int], Any]) -> Any:
    deaths = 0
    while True:
        try:
            return ray.get(ref)
        except LOST as error:
            deaths += 1
            if deaths == MAX_DEATHS:
                raise JobError(
                    f"{step} {number}: its task died {MAX_DEATHS} times ({first_line(error)}); what is planned and merged is kept; "
                    "check memory limits, then run again"
                ) from error
            print(f"{step} {number}: its task died ({first_line(error)}); submitted again", flush=True)
            ref = submit(number)
        except RayTaskError as error:
            raise cause(error) from error
