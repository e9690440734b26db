"""`videoar submit`: runs a command as a Ray job, on a cluster or on a local head that is started for it.

In:  a command line (`videoar tokenize -c CFG ...`), and the dashboard address of a cluster if there is one.
Out: the job's log on stdout, and its exit code.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType

from cluster.config import ClusterConfig, Config
from cluster.launch.ray_head import RayError, RayHead, answers, ray_environment, ray_program
from cluster.runtime.job_protocol import STOPPED


def submit(
    command: Sequence[str],
    dashboard: str,
    *,
    folder: Path | None = None,
    env: Mapping[str, str] | None = None,
    client: Mapping[str, str] | None = None,
) -> int:
    """Submit `command` with `ray job submit`, show its log, and return the job's own exit code (75 when it was stopped).

    folder: working directory of the job, which must exist on the head too (default: this process's). env: environment variables
    of the job and its workers. client: environment variables of `ray job submit` itself (`RayHead.environment`).
    SIGTERM and SIGINT stop the job. Raises RayError when no cluster answers at `dashboard`.
    """
    if not answers(f"{dashboard}/api/version"):
        raise RayError(
            f"no Ray dashboard answers at {dashboard}; start one with `ray start --head`, or leave cluster.ray_address empty"
        )
    job = f"videoar-{uuid.uuid4().hex[:12]}"
    words = [ray_program(), "job", "submit", "--address", dashboard, "--submission-id", job]
    if env:
        words += ["--runtime-env-json", json.dumps({"env_vars": dict(env)})]
    place = Path.cwd() if folder is None else folder.resolve()
    words += ["--", "env", "-C", str(place), *command]
    print(f"$ {shlex.join(words)}", file=sys.stderr, flush=True)
    own = {**ray_environment(), **(client or {})}
    with subprocess.Popen(words, env=own, start_new_session=True) as process, _StopJob(dashboard, job, own):
        submitted = process.wait()
    return _exit_code(dashboard, job, submitted, _token(own))


class _StopJob:
    """Context manager: SIGTERM and SIGINT stop the job. Outside of the main thread it does nothing."""

    def __init__(self, dashboard: str, job: str, env: Mapping[str, str]) -> None:
        self._env = dict(env)
        self._words = [ray_program(), "job", "stop", "--address", dashboard, "--no-wait", job]
        self._before: dict[int, object] = {}

    def __enter__(self) -> _StopJob:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        subprocess.run(self._words, env=self._env, check=False, stdout=subprocess.DEVNULL)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def _token(env: Mapping[str, str]) -> str:
    """Return the token that Ray's own clients would send: from the environment, else from the home folder, else none."""
    if env.get("RAY_AUTH_TOKEN"):
        return env["RAY_AUTH_TOKEN"]
    path = Path(env.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text().strip() if path.is_file() else ""


def _exit_code(dashboard: str, job: str, submitted: int, token: str) -> int:
    """Return the job's own exit code, as Ray reports it; `ray job submit` itself returns only 0 or 1."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"{dashboard}/api/jobs/{job}")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with opener.open(request, timeout=30) as answer:
            details = json.load(answer)
    except urllib.error.HTTPError:
        return submitted or 1  # the job was never accepted: `ray job submit` has printed why
    except urllib.error.URLError as error:
        raise RayError(f"{dashboard} no longer answers ({error.reason}); the outcome of job {job} is unknown") from error
    if details["status"] == "SUCCEEDED":
        return 0
    if details["status"] == "STOPPED":
        print(
            f"job {job} was stopped; what it has finished is kept: run the same command to go on", file=sys.stderr, flush=True
        )
        return STOPPED
    code = details.get("driver_exit_code")
    if code is None:
        print(f"job {job}: {details['status']}: {details.get('message')}", file=sys.stderr)
    return int(code) if code else 1


def run(config: Config, command: Sequence[str], *, address: str = "") -> int:
    """Submit `command` to `address`, else cluster.ray_address, else RAY_API_SERVER_ADDRESS, else a head started for it."""
    named = address or config.get(ClusterConfig).ray_address or os.environ.get("RAY_API_SERVER_ADDRESS", "")
    if named:
        return submit(command, named.rstrip("/"))
    with RayHead() as head:
        return submit(command, head.dashboard, client=head.environment)
