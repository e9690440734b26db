"""`bench gpu` on a CPU: its processes, its file of results, its table; and all of it at tiny shapes."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import job, probe, results, runner, shapes, steps, table
from benchmarks.gpu.bench import Bench, CannotMeasure, Figures
from benchmarks.gpu.cases import SECTIONS, Case, cases, chosen
from pretrain.attention.attention import Mask
from pretrain.estimate.flops import attended_pairs

Measure = Callable[[Bench], list[Figures]]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    if not torch.cuda.is_available():  # a test before this one, in the same worker, may have asked a CUDA build for a card
        monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: False)
    return Bench(torch.device("cpu"), True, tmp_path, tmp_path, name="CPU (dry run)")


def made(name: str, run: Measure, *, process: str = "", limit: float = 60.0) -> Case:
    return Case(name, "step", run, limit, process or name)


def fine(bench: Bench) -> list[Figures]:
    return [{"name": "fine", "pid": os.getpid()}]


def bug(bench: Bench) -> list[Figures]:
    return [{"name": "never", "value": {}["absent"]}]


def killed(bench: Bench) -> list[Figures]:
    print("reading the weights", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def unable(bench: Bench) -> list[Figures]:
    raise CannotMeasure("needs 99 GB, this card has 80; it fits with train.activation_checkpointing=full")


def too_large(bench: Bench) -> list[Figures]:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore lines")


def hang(bench: Bench) -> list[Figures]:
    child = subprocess.Popen(["sleep", "1000"])
    (bench.out / "grandchild").write_text(str(child.pid))
    print("compiling", flush=True)
    time.sleep(1000)
    return []


def go(todo: Sequence[Case], bench: Bench, seconds: float = 500.0) -> runner.Cut:
    return runner.run(todo, bench, time.monotonic() + seconds, lambda names: [], lambda line: None)


def test_a_case_that_fails_is_one_line_and_the_others_go_on(bench: Bench) -> None:
    todo = [
        made("one", fine, process="together"), made("bug", bug, process="together"), made("killed", killed, process="together"),
        made("unable", unable, process="together"), made("large", too_large, process="together"), made("two", fine, process="together"),
        made("three", fine),
    ]  # fmt: skip
    cut = go(todo, bench)
    assert cut == runner.Cut(("bug", "killed", "unable", "large"), ())
    lines = results.read(bench.out)
    assert [name for name, line in lines.items() if line["ok"]] == ["one", "two", "three"]
    assert lines["bug"]["error"] == "KeyError: 'absent'"
    assert lines["killed"]["error"] == "killed by signal 9; its last line: reading the weights"
    assert lines["unable"]["error"].startswith("needs 99 GB")
    assert lines["large"]["error"] == "CUDA out of memory. Tried to allocate 20.00 GiB."
    pids = [lines[name]["figures"][0]["pid"] for name in ("one", "two", "three")]
    assert len({os.getpid(), *pids}) == 4, "an error ends its process, and another process name is another process"
    assert 'return [{"name": "never", "value": {}["absent"]}]' in (bench.out / runner.LOG).read_text()


def test_a_case_that_hangs_is_ended_with_all_that_it_started(bench: Bench) -> None:
    assert go([made("hang", hang, limit=3.0), made("after", fine)], bench) == runner.Cut(("hang",), ())
    assert results.read(bench.out)["hang"]["error"] == "no result after 3 s; its last line: compiling"
    grandchild = Path("/proc") / (bench.out / "grandchild").read_text()
    for _ in range(1000):
        if not grandchild.exists() or "Z" in (grandchild / "stat").read_text().split(") ")[1][:1]:
            return
        time.sleep(0.01)
    raise AssertionError("what the case started is still running")


def test_a_limit_in_the_middle_loses_nothing(bench: Bench) -> None:
    todo = [made("first", fine), made("hang", hang), made("last", fine)]
    cut = go(todo, bench, 4.0)
    assert cut == runner.Cut((), ("hang", "last"))
    lines = results.read(bench.out)
    assert results.done(lines, bench.name) == {"first"} == set(lines)


def test_figures_of_another_card_and_half_a_line_do_not_count(bench: Bench) -> None:
    results.append(bench.out, {"case": "a", "section": "peak", "card": "H100", "ok": True, "figures": [{"x": math.nan}]})
    results.append(bench.out, {"case": "b", "section": "peak", "card": "H100", "ok": False, "error": "none"})
    with (bench.out / results.FILE).open("a") as file:
        file.write('{"case": "c", "ok"')
    results.append(bench.out, {"case": "d", "section": "peak", "card": "H200", "ok": True, "figures": [{"x": 1 / 3}]})
    lines = results.read(bench.out)
    assert set(lines) == {"a", "b", "d"}
    assert results.done(lines, "H100") == {"a"} and results.done(lines, "H200") == {"d"}
    assert results.figures(lines, "peak") == [{"x": None}, {"x": 0.333333}]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("window", [0, 2])
def test_pairs_are_those_of_the_mask(bench: Bench, window: int, seed: int) -> None:
    shape = replace(shapes.long(bench), window=window)
    layout = shape.layout(shapes.spec(shapes.recipe(bench, "L")))
    hidden = shape.hidden(seed)
    assert hidden is not None
    mask = Mask((layout,), torch.full((1, 1), shape.text), window, hidden)
    assert shapes.pairs(layout, window, hidden[0, 0].tolist()) == int(mask.dense().sum())
    assert shapes.pairs(layout, window, None) == attended_pairs(layout, window)


def test_the_shapes_of_the_bars(bench: Bench) -> None:
    real = replace(bench, dry=False)
    spec = shapes.spec(shapes.recipe(real, "L"))
    lengths = [shape(real).layout(spec).length for shape in (shapes.short, shapes.long, shapes.longest)]
    assert lengths == [682, 24164, 44676 + 512]
    assert len({case.name for case in cases(real)}) == len(cases(real))


def test_too_little_memory_names_the_smallest_change(bench: Bench) -> None:
    step = steps.Step(shapes.long(bench), 3, "none")
    planned: dict[steps.Checkpointing, float] = {"none": 90e9, "selective": 50e9, "full": 20e9}
    steps.fits(replace(bench, memory=int(141e9)), step, planned, 268)
    with pytest.raises(
        CannotMeasure, match=r"needs 90 GB, this card has 80; it fits with train.activation_checkpointing=selective"
    ):
        steps.fits(replace(bench, memory=int(80e9)), step, planned, 268)
    with pytest.raises(CannotMeasure, match=r"even with full checkpointing 268 x 1 tokens do not fit"):
        steps.fits(replace(bench, memory=int(16e9)), step, planned, 268)


def test_compilations_belong_to_the_step_that_they_hold_up() -> None:
    log = "\n".join((
        f"[0/0] Step 1: {job.TRACED} before_attention", "step 1/3 short f017 loss 0.7", "step 2/3 short f017 loss 0.7",
        f"[0/1] Step 1: {job.TRACED} before_attention", f"[1/1] Step 1: {job.TRACED} after", "step 3/3 long f033 loss 0.7",
    ))  # fmt: skip
    assert job.compilations(log) == {1: 1, 2: 0, 3: 2}


def test_a_card_that_cannot_is_one_line(tmp_path: Path) -> None:
    wrong, none = probe.judge("Tesla T4", 16 * 10**9, 7, 5, out=tmp_path)
    assert none is None and wrong.startswith("Tesla T4 has no bfloat16 matrix units") and "\n" not in wrong
    good, found = probe.judge("NVIDIA H200", 141 * 10**9, 9, 0, out=tmp_path)
    assert not good and found is not None and found.memory == 141 * 10**9


def test_bars_are_met_or_not(bench: Bench) -> None:
    def line(section: str, *figures: Figures) -> results.Line:
        return {"case": section, "section": section, "card": "H200", "ok": True, "dry_run": False, "figures": list(figures)}

    common = {"shape": "16 x 682", "policy": "none", "mfu": 0.4, "mfu_pipelined": 0.45}
    ours = common | {"way": "zero3", "step_s": 0.14, "pipelined_s": 0.16, "peak_to_plan": 1.2, "plan_gb": 40, "peak_gb": 48}
    lines = {"step": line("step", common | {"way": "plain", "step_s": 0.128, "pipelined_s": 0.125}, ours)}
    verdicts = {bar.text: bar.verdict for bar in table.bars(lines)}
    assert verdicts["step L, 16 x 682, zero3, none, to plain's time"] == "met"
    assert verdicts["the same, ten steps in a row, to plain's ten"] == "NOT MET"
    assert verdicts["memory of it against plan 40.0 GB"] == "NOT MET"
    assert verdicts["MFU of the real job, long stage, median"] == "unmeasured"
    lines["bad"] = {"case": "bad", "section": "job", "card": "H200", "ok": False, "dry_run": False, "error": "no room"}
    assert table.render(lines).splitlines()[-1] == "FAILED bad: no room"


def command(root: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(root / "benchmarks" / "bench_gpu.py"), "--out", str(out), *arguments]
    return subprocess.run(words, env=environment, text=True, capture_output=True, timeout=900, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_is_one_line(root: Path, tmp_path: Path) -> None:
    done = command(root, tmp_path / "out")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("bench gpu: no CUDA card here")
    assert command(root, tmp_path / "out", "--dry-run", "--only", "stepp").stderr.startswith("bench gpu: no such case: stepp;")


def test_cases_are_chosen_by_section_or_name_in_the_order_given(bench: Bench) -> None:
    known = cases(bench)
    names = [case.name for case in chosen(known, ["codec", "step/3 x 30/zero", "peak", "step"])]
    assert names[:4] == ["codec", "step/3 x 30/zero3/none", "step/3 x 30/zero1/none", "peak"]
    assert sorted(names[4:]) == sorted(case.name for case in known if case.section == "step" and case.name not in names[:4])


@pytest.mark.system
def test_all_of_it_at_tiny_shapes(root: Path, tmp_path: Path) -> None:
    out, some = tmp_path / "out", ("--dry-run", "--limit", "900")
    first = command(root, out, *some, "--only", "peak,attention,mask")
    assert first.returncode == 0, first.stdout + first.stderr
    whole = command(root, out, *some)
    assert whole.returncode == 0, whole.stdout + whole.stderr + (out / "bench.log").read_text()[-5000:]
    assert "] peak:" not in whole.stdout, "what was measured is not measured again"
    lines = results.read(out)
    assert {line["section"] for line in lines.values()} == set(SECTIONS)
    assert all(line["ok"] for line in lines.values())
    rows = {row["name"]: row for line in lines.values() for row in line["figures"]}
    assert all(row["step_s"] > 0 and row["mfu"] > 0 for row in results.figures(lines, "step"))
    assert rows["job, stage short"]["steps"] == rows["job, stage long"]["steps"] == 6
    assert rows["job, checkpoints"]["stall_stage_end_s"] > 0
    assert [json.loads(line)["step"] for line in (out / "metrics-job.jsonl").read_text().splitlines()] == list(range(1, 13))
    assert (out / "table.txt").read_text() in whole.stdout
    fresh = command(root, tmp_path / "fresh", "--dry-run", "--only", "mask", "--limit", "3.1")
    assert fresh.returncode == 75 and "the same command goes on there" in fresh.stdout
