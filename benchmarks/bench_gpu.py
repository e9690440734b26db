"""The whole of training, sampling and coding on one GPU, each against the plain alternative and the card's limits.

    python benchmarks/bench_gpu.py [--only peak,mask,...] [--out DIR] [--limit 420] [--again] [--dry-run]

No network, no Ray, one card, at most 7 minutes. Cases: `peak` (a product, a copy), `mask` (the plan of attention), `attention`, `step`
(L at 16 x 682 and 1 x 24,164 tokens under ZeRO-3 and 1, and a plain compiled transformer beside it), `job` (pretrain.train in two
stages with packing and checkpoints; three stages to count compilations), `sample`, `codec`, `checkpoint`.

--only takes sections, and beginnings of the names of cases ("step/16 x 682"), in the order in which they are to run.

DIR/gpu.jsonl gets a line as each case ends; a call with the same DIR goes on where the last one was cut, and tries again what failed.
Prints a table of the bars at the end, also into DIR/table.txt; DIR/bench.log holds what the cases printed. Exit code 0: all measured;
1: a case failed; 2: nothing can be measured here; 75: the time limit came first, the same command goes on.
--dry-run: tiny shapes on this CPU through the same code.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

BEGAN = time.monotonic()
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
DONE, FAILED, USAGE, STOPPED = 0, 1, 2, 75
COMMA = re.compile(r",(?!\d)")
"""Between cases; one before a digit is part of a number."""
RESERVE = 3.0
"""Seconds before the limit that the table needs."""

if TYPE_CHECKING:
    from benchmarks.gpu.bench import Bench


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    out = arguments.out.resolve()
    _environment(arguments.dry_run, arguments.cache)
    problem, bench = _bench(arguments.dry_run, out)
    if bench is None:
        print(f"bench gpu: {problem}", file=sys.stderr)
        return USAGE
    from benchmarks.gpu import cases, results, runner, table

    known = cases.cases(bench)
    wrong = [prefix for prefix in arguments.only if not cases.chosen(known, [prefix])]
    if wrong:
        there = ", ".join([*cases.SECTIONS, *(case.name for case in known if "/" in case.name)])
        print(f"bench gpu: no such case: {', '.join(wrong)}; there are {there}", file=sys.stderr)
        return USAGE
    out.mkdir(parents=True, exist_ok=True)
    if arguments.child:
        runner.work([case for case in known if case.name in arguments.child.split(";")], bench)
    before = set() if arguments.again else results.done(results.read(out), bench.name)
    todo = [case for case in cases.chosen(known, arguments.only) if case.name not in before]
    work = Path(tempfile.mkdtemp(prefix="bench-gpu-", dir=arguments.work))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(FAILED))
    try:
        bench = _with_work(bench, work)

        def fresh(names: Sequence[str]) -> list[str]:
            flags = ["--dry-run"] if arguments.dry_run else []
            return [
                sys.executable,
                str(Path(__file__).resolve()),
                "--child",
                ";".join(names),
                "--out",
                str(out),
                "--work",
                str(work),
                *flags,
            ]

        cut = runner.run(
            todo,
            bench,
            BEGAN + arguments.limit - RESERVE,
            fresh,
            lambda line: print(f"[{time.monotonic() - BEGAN:5.0f} s] {line}", flush=True),
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    text = table.render(results.read(out))
    (out / "table.txt").write_text(text + "\n")
    print(text)
    if cut.left:
        print(
            f"bench gpu: the limit of {arguments.limit:.0f} s came before {', '.join(cut.left)}; the same command goes on there"
        )
        return STOPPED
    return FAILED if cut.failed else DONE


def _parser() -> argparse.ArgumentParser:
    from_sections = "peak,mask,attention,step,job,sample,codec,checkpoint"
    parser = argparse.ArgumentParser(
        prog="bench gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=lambda text: COMMA.split(text), default=from_sections.split(","), metavar="CASE,...")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench-gpu"), metavar="DIR", help="results; default runs/bench-gpu"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder on a disk with 50 GB for checkpoints; default: a temporary one",
    )
    parser.add_argument(
        "--cache", type=Path, default=None, metavar="DIR", help="compiled code; default: ~/.cache/videoar/bench-gpu"
    )
    parser.add_argument("--limit", type=float, default=420.0, metavar="SECONDS", help="default 420")
    parser.add_argument("--again", action="store_true", help="measure also what DIR holds already")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on this CPU")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    return parser


def _environment(dry: bool, cache: Path | None) -> None:
    """Set what PyTorch and DeepSpeed read when they are imported. A cache of another version of PyTorch is another folder."""
    from importlib.metadata import version

    root = cache or Path.home() / ".cache" / "videoar" / "bench-gpu"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root.resolve() / f"torch-{version('torch')}"))
    os.environ["DS_ACCELERATOR"] = "cpu" if dry else "cuda"
    os.environ.setdefault("DS_IGNORE_CUDA_DETECTION", "1")
    # Asks the driver's management library whether there is a card: a process that began to use the card could not be forked.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"


def _bench(dry: bool, out: Path) -> tuple[str, Bench | None]:
    """Import what all cases need; return the benchmark, or why nothing can be measured."""
    import deepspeed  # noqa: F401  each process would take seconds to import them
    import torch
    import torch._dynamo

    from benchmarks.gpu import bench, probe

    if dry:
        return "", bench.Bench(torch.device("cpu"), True, out, out, name="CPU (dry run)")
    return probe.card(out)


def _with_work(bench: Any, work: Path) -> Any:
    from dataclasses import replace

    return replace(bench, work=work)


if __name__ == "__main__":
    sys.exit(main())
