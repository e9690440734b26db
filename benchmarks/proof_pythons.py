"""Proof: unit tests on each Python that is supported, and the wheel in an empty environment runs the demo's first step.

    python benchmarks/proof_pythons.py [--python python3.12 --python python3.13] [--skip-units | --skip-wheel] [--work DIR]

For each interpreter an environment is made in DIR, the lock is installed as `make setup` would (pip's torch may be a CUDA build of 3 GB),
and the unit tests of this clone run in it. Then a wheel is built and installed with its extra `demo` into an empty environment, where pip
chooses the newest of everything that is in range, and `videoar demo` runs outside the clone until the tokenizer is trained. Environments
are removed as soon as they have served (--keep leaves them). Prints a line for each, and one JSON line; exit code 1 if one fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("tokenizer.training.steps=8",)
PATIENCE = 900
"""Seconds that the demo may take to its first step's end."""


def environment(python: str, place: Path) -> Path:
    """Make an empty environment and return its interpreter."""
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([python, "-m", "venv", str(place)], check=True)
    return place / "bin" / "python"


def install(python: Path, *words: str) -> None:
    """Install packages with pip."""
    subprocess.run(
        [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *words], check=True, cwd=ROOT
    )


def described(python: Path) -> str:
    """Return the versions of Python and torch of an environment."""
    code = "import platform, torch; print(f'Python {platform.python_version()}, torch {torch.__version__}')"
    return subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def units(python: str, work: Path, workers: str) -> dict[str, object]:
    """Run the unit tests on an interpreter, in an environment of its own that holds what the lock says."""
    place = work / f"units-{Path(python).name}"
    inside = environment(python, place)
    install(inside, "-r", "requirements.lock")
    install(inside, "--no-deps", "-r", "requirements-data.txt")
    install(inside, "--no-deps", "--no-build-isolation", ".")
    began = time.monotonic()
    command = [
        str(inside),
        "-m",
        "pytest",
        "-q",
        "-m",
        "not system",
        "-n",
        workers,
        "--dist",
        "loadfile",
        "-p",
        "no:cacheprovider",
    ]
    variables = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    (work / f"{place.name}.log").write_text(done.stdout)
    found = {"what": "unit tests", "on": described(inside), "ok": done.returncode == 0, "s": round(time.monotonic() - began)}
    return found | {"said": done.stdout.strip().splitlines()[-1].strip("= ")}


def wheel(python: str, work: Path) -> dict[str, object]:
    """Install a wheel into an empty environment, and run the demo's first step in a folder outside the clone."""
    shutil.rmtree(work / "wheel", ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(work / "wheel"),
        ".",
    ]
    subprocess.run(command, check=True, cwd=ROOT)
    inside = environment(python, work / "empty")
    install(inside, f"{next((work / 'wheel').glob('*.whl'))}[demo]")
    outside = work / "outside"
    shutil.rmtree(outside, ignore_errors=True)
    outside.mkdir()
    began = time.monotonic()
    log = work / "demo.log"
    program, done = str(inside.with_name("videoar")), outside / "demo" / "tokenizer" / "tokenizer.safetensors"
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with log.open("w") as file:
        demo = subprocess.Popen(
            [program, "demo", "--out", "demo", "--minutes", "0", *STEPS],
            cwd=outside, env=variables, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            while demo.poll() is None and not done.exists() and time.monotonic() - began < PATIENCE:
                time.sleep(1)
        finally:
            if demo.poll() is None:
                os.killpg(demo.pid, signal.SIGTERM)
            demo.wait(60)
    said = subprocess.run([program, "--version"], cwd=outside, env=variables, capture_output=True, text=True, check=True).stdout
    tail = log.read_text().strip().splitlines()[-1:] or [""]
    return {
        "what": "the wheel's demo, tokenizer trained", "on": described(inside), "ok": done.exists(), "s": round(time.monotonic() - began),
        "said": " | ".join(said.splitlines()) if done.exists() else tail[0],
    }  # fmt: skip


def main() -> int:
    """Run all proofs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--python", action="append", metavar="PYTHON", help="interpreter for the unit tests; default 3.12 and 3.13"
    )
    parser.add_argument("--wheel-python", default=sys.executable, metavar="PYTHON", help="interpreter for the wheel")
    parser.add_argument("--skip-units", action="store_true")
    parser.add_argument("--skip-wheel", action="store_true")
    parser.add_argument("--workers", default=str(min(8, os.cpu_count() or 1)), help="processes of the unit tests")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "proof-pythons", metavar="DIR", help="12 GB are needed")
    parser.add_argument("--keep", action="store_true", help="leave the environments")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    found = []
    for python in () if options.skip_units else options.python or ("python3.12", "python3.13"):
        found.append(units(python, work, options.workers))
        print("{on}: {what}: {said}".format(**found[-1]), flush=True)
        if not options.keep:
            shutil.rmtree(work / f"units-{Path(python).name}")
    if not options.skip_wheel:
        found.append(wheel(options.wheel_python, work))
        print("{on}: {what}: {said}".format(**found[-1]), flush=True)
        if not options.keep:
            shutil.rmtree(work / "empty")
    print(json.dumps(found))
    return 0 if all(each["ok"] for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
