"""Variables of the environment that the ranks on other hosts need, and how they get there.

In:  this process's environment. Out: the shell command of a host, and a line of JSON for its standard input.

Values never stand on a command line, which every user of a host can read: among them are keys of object stores.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

FORWARDED = (
    "AWS_", "CUDA_", "DS_", "FI_", "GLOO_", "GOOGLE_", "HF_", "LD_LIBRARY_PATH", "MALLOC_", "NCCL_", "NVTE_", "OMP_", "PYTHONHASHSEED",
    "PYTHONPATH", "PYTHONUNBUFFERED", "RDMAV_", "TORCH", "TRITON_", "UCX_", "VIDEOAR_",
)  # fmt: skip
"""Prefixes of the variables that are passed on to the other hosts."""
KEPT = ("CUDA_VISIBLE_DEVICES", "TORCHELASTIC_")
"""Prefixes of variables that hold for this host only."""
_START = (
    "import json,os,signal,subprocess,sys;"
    # Slurm signals every process of a step: ranks unblock these once they can answer, the launcher between must not die of them.
    "signal.pthread_sigmask(signal.SIG_BLOCK,(signal.SIGTERM,signal.SIGINT,signal.SIGUSR1));"
    # Unbuffered: what follows the line is for the command.
    "given=json.loads(sys.stdin.buffer.raw.readline());"
    "code=subprocess.call(given['words'],env={**os.environ,**given['env']});"
    # 255 is left to ssh: a job that ends with -1 is no lost connection.
    "sys.exit(128-code if code<0 else 1 if code==255 else code)"
)


def signal_as_exit_code(code: int) -> int:
    """Return a process's exit code as shells write it: 128 + N for one that signal N ended, which Python gives as -N."""
    return code if code >= 0 else 128 - code


def forwarded(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `env` that ranks on other hosts need."""
    return {key: value for key, value in sorted(env.items()) if key.startswith(FORWARDED) and not key.startswith(KEPT)}


def start_command(folder: Path) -> str:
    """Return the shell command that changes to `folder` and starts what is then given on its standard input."""
    return f"cd {shlex.quote(str(folder))} && exec {shlex.join([sys.executable, '-c', _START])}"


def start_input(words: Sequence[str], env: Mapping[str, str]) -> bytes:
    """Return the line that `start_command` reads: the command, and the variables to add to the environment of the host."""
    return json.dumps({"words": list(words), "env": forwarded(env)}).encode() + b"\n"
