"""The real training job in a process of its own, as the launcher would start it: what its metrics.jsonl and its log say of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.gpu import shapes
from benchmarks.gpu.bench import ROOT, Bench, CannotMeasure, Figures
from benchmarks.gpu.steps import POLICIES, SPARE, plan
from cluster.runtime.ports import free_port
from pretrain.estimate.memory import Checkpointing, parameters_of
from pretrain.model.config import ModelConfig

LOG = "bench.log"
WARM_UP = 3
"""Steps of each stage that its medians leave out."""
TRACED = "torchdynamo start tracing"
"""What torch logs for each function that it compiles."""
STEP = re.compile(r"^step (\d+)/\d+ ")
BYTES = 16
"""Of a checkpoint per parameter: master weights, two moments, moving average."""


def job(bench: Bench) -> list[Figures]:
    """Recipe L in two stages, short clips and images packed into rows of 24,576 tokens, then clips of 24,164 tokens: hidden frames, EMA,
    a checkpoint at each stage's end: so short a job with more would wait for the disk, and measure that."""
    config = shapes.recipe(bench, "L", "train.ema=0.9999")
    model, spec = config.get(ModelConfig), shapes.spec(config)
    parameters = parameters_of(model, spec.bits)
    tokens = 512 if bench.dry else 24576
    policy = _policy(bench, config, parameters, tokens, spec.bits)
    short, long, steps = _streams(bench)
    text = f"""
        stages:
        - {{name: short, steps: {steps[0]}, window: 0, mix: [{short}]}}
        - {{name: long, steps: {steps[1]}, mix: [{long}]}}
        """
    free, each = shutil.disk_usage(bench.work).free, BYTES * parameters
    if free < 2.2 * each:
        raise CannotMeasure(
            f"{bench.work}: {free / 1e9:.0f} GB free, {2.2 * each / 1e9:.0f} needed for checkpoints: give another folder with --work"
        )
    changes = {"train": {"activation_checkpointing": policy, "checkpoint_every": sum(steps), "pack_tokens": tokens}}
    run = _run(bench, "job", "L", text, changes)
    return [*_stages(run, policy), _checkpoints(run, parameters)]


def stages(bench: Bench) -> list[Figures]:
    """The blocks of L, two of them, in three stages with other shapes, windows and hidden frames: only to count what is compiled."""
    short, long, _ = _streams(bench)
    text = f"""
        stages:
        - {{name: packed, steps: 8, window: 0, mix: [{short}]}}
        - {{name: longer, steps: 6, window: 4, frame_mask: 0.3, mix: [{long}]}}
        - {{name: mixed, steps: 8, mix: [{short}, {long}]}}
        """
    changes = {
        "train": {"checkpoint_every": 1000, "ema": 0.0, "pack_tokens": 512 if bench.dry else 24576},
        "model": {"layers": 2},
    }
    run = _run(bench, "stages", "L", text, changes)
    return _stages(run, "none")


def _policy(bench: Bench, config: Any, parameters: int, tokens: int, bits: int) -> Checkpointing:
    """The least recomputing that fits; on a large card selective, which a recipe would take with room for longer rows."""
    wanted: tuple[Checkpointing, ...] = POLICIES[1:]
    room = SPARE * bench.memory
    for policy in wanted:
        if not bench.memory or plan(config, parameters, tokens, bits, policy) <= room:
            return policy
    need = plan(config, parameters, tokens, bits, "full") / 1e9
    raise CannotMeasure(
        f"the job needs {need:.0f} GB with full checkpointing, this card has {bench.memory / 1e9:.0f}: use --only without job"
    )


def _streams(bench: Bench) -> tuple[str, str, tuple[int, int]]:
    """The mixes of the short and the long stage, and their steps."""
    if bench.dry:
        short = "{bucket: f005x32x64, batch: 6, weight: 2}, {bucket: f017x64x96, frames: 1, batch: 4}"
        return short, "{bucket: f017x64x96, batch: 2}", (6, 6)
    short = "{bucket: f017x128x128, batch: 64, weight: 2}, {bucket: f033x384x672, frames: 1, batch: 32}"
    return short, "{bucket: f033x384x672, batch: 2}", (12, 16)


def _shards(bench: Bench) -> Path:
    from tests.helpers import made_shards

    folder = bench.work / "shards"
    if not folder.is_dir():
        counts = {"f005x32x64": 30, "f017x64x96": 12} if bench.dry else {"f017x128x128": 256, "f033x384x672": 64}
        made_shards.make(folder, counts, spec=shapes.spec(shapes.recipe(bench, "L")), shard_rows=32)
    return folder


class Run:
    """A finished job: one row a step, and its log."""

    def __init__(self, rows: list[dict[str, Any]], log: str, seconds: float) -> None:
        self.rows, self.log, self.seconds = rows, log, seconds


def _run(bench: Bench, name: str, size: str, stages: str, changes: dict[str, dict[str, Any]]) -> Run:
    """Train; raises CannotMeasure with the job's last line if it fails."""
    folder = bench.work / name
    folder.mkdir()
    plain = yaml.safe_load((ROOT / "configs" / f"{shapes.RECIPES[size]}.yaml").read_text())
    plain["run"] = {"dir": str(folder / "run"), "seed": 3}
    plain["curriculum"] = {"shards": [str(_shards(bench))], **yaml.safe_load(stages)}
    train = {
        "micro_batch": 1 if name == "stages" else 8,
        "pack_above": 0.0,
        "keep_checkpoints": 1,
        "warmup": 2,
        "dtype": "float32" if bench.dry else "bfloat16",
    }
    plain["train"] |= train
    plain["metrics"] = {"port": 0}
    plain["model"] |= {"layers": 2, "width": 64, "heads": 2, "ffn": 96, "compile": False} if bench.dry else {}
    for section, values in changes.items():
        plain.setdefault(section, {}).update(values)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(plain))
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))), "PYTHONUNBUFFERED": "1",
        "TORCH_LOGS": "dynamo,recompiles", "DS_ACCELERATOR": "cpu" if bench.dry else "cuda",
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    began = time.perf_counter()
    log = bench.out / LOG  # a job that is ended by a time limit has said there how far it came
    begins = log.stat().st_size if log.is_file() else 0
    with log.open("a") as file:
        command = [sys.executable, "-m", "pretrain.train", "-c", str(path)]
        code = subprocess.run(
            command, env=environment, cwd=folder, stdout=file, stderr=subprocess.STDOUT, check=False
        ).returncode
    with log.open(errors="replace") as file:
        file.seek(begins)
        printed = file.read()
    if code:
        raise CannotMeasure(f"pretrain.train ended with {code}: {last_line(printed)}")
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    with (bench.out / f"metrics-{name}.jsonl").open("w") as file:
        for row in rows:
            file.write(json.dumps({key: value for key, value in row.items() if key not in ("sample_ids", "frame_loss")}) + "\n")
    shutil.rmtree(folder)
    return Run(rows, printed, time.perf_counter() - began)


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")


def compilations(log: str) -> dict[int, int]:
    """Functions compiled in each step: torch's own lines, which stand before the console line of the step that they held up."""
    found: dict[int, int] = {}
    count = 0
    for line in log.splitlines():
        if TRACED in line:
            count += 1
        elif match := STEP.match(line):
            found[int(match[1])] = count
            count = 0
    return found


def _stages(run: Run, policy: str) -> list[Figures]:
    compiled = compilations(run.log)
    found = []
    for name in dict.fromkeys(row["stage_name"] for row in run.rows):
        rows = [row for row in run.rows if row["stage_name"] == name]
        warm = rows[WARM_UP:]
        total = [row["seconds"]["total"] for row in warm]
        mfu = [row["mfu"] for row in warm if row.get("mfu") is not None]
        found.append({
            "name": f"job, stage {name}", "stage": name, "policy": policy, "steps": len(rows), "mfu": median(mfu) if mfu else None,
            "mfu_best": max(mfu, default=None), "step_s": median(total), "slowest_s": max(total), "first_step_s": rows[0]["seconds"]["total"],
            "tokens_per_s": median(row["tokens"] / row["seconds"]["total"] for row in warm),
            "compilations_first_step": compiled.get(rows[0]["step"], 0),
            "compilations_later": sum(compiled.get(row["step"], 0) for row in rows[1:]),
            "data_wait_s": median(row["seconds"].get("data", 0.0) for row in warm), "loss": rows[-1]["loss"],
            "peak_gb": max(row["memory"].get("peak", 0) for row in rows) / 1e9, "job_s": run.seconds,
        })  # fmt: skip
    return found


def _checkpoints(run: Run, parameters: int) -> Figures:
    stalls = {row["step"]: row["seconds"].get("checkpoint", 0.0) for row in run.rows}
    stage_ends = [
        one["step"] for one, two in zip(run.rows, [*run.rows[1:], None]) if two is None or two["stage"] != one["stage"]
    ]
    saved = sorted(stalls, key=lambda step: -stalls[step])[:3]
    after = _after(run.rows, saved)
    return {
        "name": "job, checkpoints", "gb": BYTES * parameters / 1e9, "stall_s": max(stalls.values()), "slowest_at_steps": sorted(saved),
        "stall_stage_end_s": max(stalls[step] for step in stage_ends), "stall_by_step": {str(step): stalls[step] for step in sorted(saved)},
        "next_step_excess_s": after, "resident_gb": max(row["memory"]["resident"] for row in run.rows) / 1e9,
    }  # fmt: skip


def _after(rows: Sequence[dict[str, Any]], saved: Sequence[int]) -> float:
    """Most seconds that a step after a checkpoint took beyond the median of its stage: copies behind the step may slow it down."""
    worst = 0.0
    for row in rows:
        if row["step"] - 1 in saved:
            usual = median(other["seconds"]["total"] for other in rows if other["stage"] == row["stage"])
            same = any(other["step"] == row["step"] - 1 and other["stage"] == row["stage"] for other in rows)
            worst = max(worst, row["seconds"]["total"] - usual if same else 0.0)
    return worst
