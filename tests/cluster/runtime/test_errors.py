"""Errors meant for the user are one line; every other error keeps its traceback, on the console and in the log."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.config import ConfigError
from cluster.launch.launcher import RunBusyError
from cluster.runtime.errors import SHOW_TRACEBACKS, ErrorReport, description, exit_code, is_ours, one_line
from cluster.runtime.ports import PortError


def caught(work: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as found:
        work()
    return found.value


def wrong_shape() -> None:
    """torch's own error, raised at a line of our code."""
    import torch

    from pretrain.model.rope import rotate

    rotate(torch.ones(1, 1, 2, 8), torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 3))


def test_a_class_of_our_packages_is_one_line() -> None:
    for error in (ConfigError("job.yaml:3: wrong"), RunBusyError("run: busy"), PortError("no port on 10.0.0.1")):
        assert is_ours(error) and description(error) == str(error) == one_line(error)


def test_a_subclass_of_ours_is_ours_wherever_it_is_defined() -> None:
    class Special(RunBusyError):
        """Its own module is this test."""

    assert is_ours(Special("x"))


def test_an_error_of_torch_keeps_its_traceback_though_a_line_of_ours_raised_it() -> None:
    error = caught(wrong_shape)
    assert type(error) is RuntimeError and not is_ours(error)
    text = description(error)
    assert text.startswith("Traceback") and "in rotate" in text and "must match the size of tensor" in text


def test_built_in_errors_raised_by_our_own_code_are_bugs() -> None:
    from cluster.config.sections import section_class

    error = caught(lambda: section_class("no such section"))
    assert type(error) is KeyError and not is_ours(error) and "in section_class" in description(error)


def test_an_os_error_that_names_a_file_is_one_line() -> None:
    error = caught(lambda: Path("/no/such/file").read_text())
    assert is_ours(error) and description(error) == "/no/such/file: No such file or directory"
    assert not is_ours(OSError("connection reset")), "without a file nothing says what to do"


def test_an_error_without_a_message_shows_its_class() -> None:
    assert one_line(RunBusyError()) == "RunBusyError"


def test_exit_codes_tell_a_configuration_from_other_failures() -> None:
    assert exit_code(ConfigError("x")) == 2
    assert exit_code(RunBusyError("x")) == exit_code(RuntimeError("x")) == 1


def test_our_own_errors_show_their_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ConfigError("job.yaml: wrong")

    error = caught(fail)
    monkeypatch.setenv(SHOW_TRACEBACKS, "1")
    assert description(error).startswith("Traceback") and "in fail" in description(error)
    monkeypatch.setenv(SHOW_TRACEBACKS, "0")
    assert description(error) == "job.yaml: wrong"


def test_a_report_swallows_ours_in_one_line_and_logs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "run" / "log" / "rank-3.log"
    with ErrorReport("error: rank 3: ", lambda: log) as report:
        raise ConfigError("job.yaml:3: `train.clip`: wrong")
    assert report.code == 2 and isinstance(report.error, ConfigError)
    line = "error: rank 3: job.yaml:3: `train.clip`: wrong\n"
    assert capsys.readouterr().err == line == log.read_text()


def test_a_report_shows_the_traceback_of_a_bug_on_the_console_and_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "rank-1.log"
    log.write_text("step 1\n")
    with ErrorReport("error: rank 1: ", lambda: log) as report:
        wrong_shape()
    printed = capsys.readouterr().err
    assert report.code == 1
    assert (
        "in rotate" in printed
        and "error: rank 1: RuntimeError: The size of tensor a (4) must match" in printed.splitlines()[-1]
    )
    assert log.read_text() == "step 1\n" + printed, "the log is appended to"


def test_a_log_that_cannot_be_written_is_named_and_hides_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    log = tmp_path / "file" / "rank-0.log"
    with ErrorReport("error: ", lambda: log) as report:
        wrong_shape()
    printed = capsys.readouterr().err
    assert report.code == 1 and "in wrong_shape" in printed
    assert printed.splitlines()[-1].startswith(f"error: {log}: cannot append this error: ")


def test_success_exits_and_interrupts_pass_through() -> None:
    with ErrorReport("error: ") as report:
        pass
    assert report.code == 0 and report.error is None
    for passing in (SystemExit(75), KeyboardInterrupt()):
        with pytest.raises(type(passing)), ErrorReport("error: "):
            raise passing


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fails_half_way_is_one_line_though_no_file_is_named(number: int) -> None:
    error = OSError(number, os.strerror(number))
    assert error.filename is None and is_ours(error) and description(error) == str(error)
