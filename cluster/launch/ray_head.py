"""A private Ray head on this machine.

In:  how many CPUs Ray may schedule.
Out: a running head: its address, its dashboard, and the token that a client needs.

It shares nothing with other Ray clusters on the machine: it has its own ports, token and temporary folder, and it is stopped
through its own processes (`ray stop` would stop them all).
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import psutil

from cluster.runtime.ports import free_ports
from cluster.supervise.processes import tied

OBJECT_STORE_BYTES = 256 * 1024**2
"""Shared memory of a local head; the job's samples pass through it batch by batch."""
_PREFIX = "vray-"
"""Start of the name of a head's temporary folder; the owner's process id follows."""
_NODE = "127.0.0.2"
"""Node address. Ray replaces 127.0.0.1 by an outside address, which changes on a laptop and may not exist on a locked-down host."""
_START_SECONDS = 180.0
_TRIES = 3
_INHERITED = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_SUBMIT_HOOK")
"""Variables that would direct a new head, or a submission to it, to another Ray."""


class RayError(RuntimeError):
    """A Ray head that does not start, or a cluster that does not answer; the message is one line."""


class RayHead:
    """Context manager: a Ray head on loopback. `address` is for `ray.init`, `dashboard` for `ray job submit`.

    It ends together with the thread that starts it, even when that is killed.
    """

    def __init__(self, *, cpus: int | None = None, object_store: int = OBJECT_STORE_BYTES) -> None:
        """cpus: CPUs that Ray may schedule (default: all of the machine). object_store: bytes of shared memory."""
        self.cpus = os.cpu_count() or 1 if cpus is None else cpus
        self.object_store = object_store
        self.address = ""
        self.dashboard = ""
        # A token of its own, whatever the user's Ray settings are: Ray's servers listen on all interfaces, and a job may run
        # anything. Without it, only some clients would be asked for a token that an earlier Ray left in the home folder.
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        """Environment variables that a client of this head needs, such as `ray job submit`."""
        self._process: subprocess.Popen[bytes] | None = None
        self._known: dict[int, psutil.Process] = {}
        self._folder: Path | None = None

    def start(self) -> None:
        """Start the head and wait until it accepts jobs. Raises RayError when it does not start."""
        remove_leftovers()
        for attempt in range(1, _TRIES + 1):
            try:
                with ExitStack() as undo:
                    undo.callback(self.stop)
                    # A short path: Ray creates sockets in it, and a socket's path is limited to 107 characters.
                    self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir="/tmp"))
                    self._start_once(self._folder)
                    undo.pop_all()
                return
            except RayError:
                if attempt == _TRIES:
                    raise

    def _start_once(self, folder: Path) -> None:
        gcs, dashboard, client, agent, agent_grpc, node, objects, runtime, metrics = free_ports(9, "0.0.0.0")
        command = [
            *(ray_program(), "start", "--head", "--block", "--disable-usage-stats", f"--temp-dir={folder}"),
            *(f"--node-ip-address={_NODE}", f"--num-cpus={self.cpus}", f"--object-store-memory={self.object_store}"),
            *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            *(f"--port={gcs}", f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
            *(f"--dashboard-agent-grpc-port={agent_grpc}", f"--node-manager-port={node}"),
            *(f"--object-manager-port={objects}", f"--runtime-env-agent-port={runtime}"),
            # Workers use any port that the kernel assigns, not a fixed range that two Ray clusters would share.
            *(f"--metrics-export-port={metrics}", "--min-worker-port=0", "--max-worker-port=0"),
        ]
        log = folder / "head.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                tied(command, os.getpid()),
                env={**ray_environment(), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.address = f"{_NODE}:{gcs}"
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        deadline = time.monotonic() + _START_SECONDS
        # The agent starts last, and `ray job submit` needs it.
        waiting = [f"{self.dashboard}/api/version", f"http://127.0.0.1:{agent}/api/local_raylet_healthz"]
        while waiting:
            self._remember()
            if answers(waiting[0]):
                waiting.pop(0)
                continue
            try:
                code = self._process.wait(timeout=0.25)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
                raise RayError(f"the local Ray head does not answer after {_START_SECONDS:.0f} s; {_last_lines(log)}") from None
            raise RayError(f"the local Ray head ended with exit code {code} while starting; {_last_lines(log)}")

    def _remember(self) -> None:
        """Record the head's processes: once their parent has exited, nothing else shows that they belong to it."""
        if self._process is None:
            return
        try:
            top = psutil.Process(self._process.pid)
            for process in (top, *top.children(recursive=True)):
                self._known[process.pid] = process
        except psutil.NoSuchProcess:
            return

    def stop(self) -> None:
        """Stop the head and all its processes, and remove its folder."""
        if self._process is not None:
            self._remember()
            self._process.terminate()
            # psutil compares creation times, so that a reused process id is never signalled.
            for send in (psutil.Process.terminate, psutil.Process.kill):
                _, alive = psutil.wait_procs(list(self._known.values()), timeout=5)
                for process in alive:
                    try:
                        send(process)
                    except psutil.NoSuchProcess:
                        continue
            psutil.wait_procs(list(self._known.values()), timeout=5)
            self._process.wait()
            self._process = None
            self._known.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> RayHead:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def remove_leftovers() -> None:
    """Remove the folders of heads whose owner was killed; their processes ended with the owner (`tied`)."""
    for folder in Path("/tmp").glob(f"{_PREFIX}*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _last_lines(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"the end of its log: {' | '.join(lines[-3:])}" if lines else "its log is empty"


def ray_program() -> str:
    """Return the path of this Python's `ray` command. Raises RayError when it is missing."""
    beside = Path(sys.executable).with_name("ray")
    found = str(beside) if beside.exists() else shutil.which("ray")
    if found is None:
        raise RayError(f"no `ray` command beside {sys.executable}; run `make setup`")
    return found


def ray_environment() -> dict[str, str]:
    """Return the environment for Ray's processes: this Python's commands first, no other Ray, no proxy for loopback."""
    env = {key: value for key, value in os.environ.items() if key not in _INHERITED}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    local = "127.0.0.1,localhost"
    env["NO_PROXY"] = env["no_proxy"] = f"{env['NO_PROXY']},{local}" if env.get("NO_PROXY") else local
    env["PYTHONUNBUFFERED"] = "1"
    return env


def answers(url: str) -> bool:
    """Return whether an HTTP server answers `url` now; a request for a token counts as an answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except (urllib.error.URLError, OSError):
        return False
