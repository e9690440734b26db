"""The Ray session of a job: the cluster that RAY_ADDRESS names, or one on this machine for as long as the job lasts.

In:  the configuration and the environment.
Out: an initialised Ray, or a `JobError` that names the address and the fix; a clean end with 75 when the job is told to stop.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import ray

from cluster.runtime.job_protocol import STOPPED
from cluster.runtime.ports import refusal, token_remedy
from pipeline.config import PipelineConfig
from pipeline.workers.errors import JobError, first_line

_START_SECONDS = "300"
"""Seconds that Ray's servers on this machine get to start (its own default of 30 is too short on a busy machine)."""


SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable that Ray sets for the command of a job that was submitted."""


@contextmanager
def stoppable(output: Path) -> Iterator[None]:
    """While this is open, SIGTERM (`ray job stop`) and SIGINT end the job with 75 and say how to go on; what is committed stays.

    Outside of the main thread, where Python takes no handlers, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        os.write(1, f"stopped ({name}): finished shards are kept in {output}; run the same command to go on\n".encode())
        raise SystemExit(STOPPED)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def session(config: PipelineConfig) -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names (as inside `ray job submit`), or start one in this process for the job.

    Raises JobError where nothing answers at the address, or the servers do not start.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    with tempfile.TemporaryDirectory(prefix="r-", ignore_cleanup_errors=True) as folder:
        if address:
            _join(address)
        else:
            _start(config, folder)
        try:
            _check_gpus(config, joined=bool(address))
            yield
        finally:
            ray.shutdown()


def resolved_output(folder: Path) -> Path:
    """Return the output folder as an absolute path.

    Raises JobError where it is relative to a folder of Ray's, or lies in Ray's copy of a job's working folder.
    """
    absolute = Path(os.path.abspath(folder))  # noqa: PTH100 - not through links: the name is the user's
    for path in (absolute, absolute.resolve()):
        if "working_dir_files" in path.parts or any(part.startswith("_ray_pkg_") for part in path.parts):
            raise JobError(
                f"pipeline.output: {folder} is {absolute}, in the copy of the working folder that Ray made for this job (ray job "
                "submit --working-dir) and deletes after it; give an absolute path of a folder that all hosts see"
            )
    if SUBMITTED in os.environ and not folder.is_absolute():
        raise JobError(
            f"pipeline.output: {folder} is relative, and this job runs where Ray puts it ({Path.cwd()}); give an absolute path of a "
            "folder that all hosts see, or submit it with `videoar submit`, which takes paths from where it is called"
        )
    return absolute


def check_config(path: Path) -> None:
    """Raise JobError for a configuration that is not there because the job runs in another folder than it was submitted from."""
    if SUBMITTED in os.environ and not path.is_absolute() and not path.exists():
        raise JobError(
            f"{path}: not in {Path.cwd()}, where Ray runs this job; give the configuration's absolute path, which the head sees, or "
            "submit it with `videoar submit`, which takes paths from where it is called"
        )


def _join(address: str) -> None:
    if address.startswith(("http://", "https://")):
        raise JobError(
            f"RAY_ADDRESS={address} is a dashboard's address, which takes submitted jobs; submit the job (videoar submit --address "
            f"{address}), or set RAY_ADDRESS=HOST:6379, the address that `ray start --head` names, or unset it"
        )
    remedy = "start it with `ray start --head`, correct RAY_ADDRESS, or unset it to run on this machine alone"
    if why := refusal(address):  # Ray itself tries for minutes before it reports anything
        raise JobError(f"cannot join the Ray cluster at RAY_ADDRESS={address}: {why}; {remedy}")
    try:
        ray.init(address="auto", log_to_driver=True)
    except Exception as error:  # Ray raises many kinds, `Exception` itself among them
        raise JobError(
            f"cannot join the Ray cluster at RAY_ADDRESS={address}: {first_line(error)}; {remedy}{token_remedy()}"
        ) from error
    print(f"ray: joined the cluster at {address}", flush=True)


def _start(config: PipelineConfig, folder: str) -> None:
    # Ray's own message names this variable.
    patience = os.environ.setdefault("RAY_raylet_start_wait_time_s", _START_SECONDS)
    cpus = max(os.cpu_count() or 1, int(config.workers * config.cpus_per_worker + 0.999))
    try:
        # Ray's sockets live below the folder, and a socket's path may not exceed 107 bytes.
        ray.init(num_cpus=cpus, include_dashboard=False, _temp_dir=folder, logging_level=logging.WARNING, log_to_driver=True)
    except Exception as error:  # Ray raises `Exception` itself when its servers do not start
        ray.shutdown()
        raise JobError(
            f"Ray's servers did not start on this machine: {first_line(error)}; check that memory, processes (ulimit -u) and "
            f"disk space under {tempfile.gettempdir()} suffice, or raise RAY_raylet_start_wait_time_s (now {patience}), and run again"
        ) from error


def _check_gpus(config: PipelineConfig, joined: bool) -> None:
    """Check that there is a GPU if the configuration asks for one: a worker would wait for it forever."""
    keys = {"gpus_per_worker": config.gpus_per_worker, "captioner.gpus": config.captioner.gpus}
    asked = [f"pipeline.{key}={value:g}" for key, value in keys.items() if value > 0]
    if config.decode_device != "cpu":
        asked.append(f"pipeline.decode_device={config.decode_device}")
    if not asked or ray.cluster_resources().get("GPU", 0) > 0:
        return
    if joined:  # it may grow
        print(f"ray: the cluster has no GPU yet; the job waits for one ({', '.join(asked)})", flush=True)
    else:
        raise JobError(
            f"Ray finds no GPU on this machine, and {', '.join(asked)} asks for one; set to 0 and cpu, or install the driver"
        )
