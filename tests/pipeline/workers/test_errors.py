"""What Ray raises, sorted: the task's own error keeps its class, a message is one line."""

from __future__ import annotations

import pytest
from ray.exceptions import RayTaskError

from pipeline.video import DeviceError
from pipeline.workers.errors import cause, first_line


def failed(error: Exception) -> RayTaskError:
    return RayTaskError("plan_part", "Traceback ...", error)


def test_the_error_of_a_task_reaches_the_caller_with_its_class() -> None:
    ours = DeviceError("pipeline.decode_device: cannot open cuda:63")
    assert cause(failed(ours)) is ours
    bug = failed(KeyError("lost"))
    assert cause(bug) is bug, "with the traceback of the worker, which is its text"


@pytest.mark.parametrize(("text", "line"), [("one\ntwo", "one"), ("\n  two  \n", "two"), ("", "RuntimeError")])
def test_a_message_is_one_line(text: str, line: str) -> None:
    assert first_line(RuntimeError(text)) == line
