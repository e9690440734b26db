"""Laws 2 and 3 with real processes: order and losses at any number of ranks, exact resume, kills, bad input."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from cluster.runtime.ports import free_port
from tests.helpers import training

pytestmark = pytest.mark.system
GOLDEN = Path(__file__).parent / "golden_losses.json"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.prepare(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def undisturbed(config: Path) -> Path:
    """Two ranks, ZeRO-3, from step 1 to 20 with nothing in the way."""
    run = config.parent / "undisturbed"
    process = training.start(config, 2, run)
    said = training.until(process, "step 3/20")
    address = (run / "metrics-address").read_text().strip()
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        served = answer.read().decode()
    rest, _ = process.communicate(timeout=training.PATIENCE)
    assert process.returncode == 0, said + rest
    assert "videoar_train_step " in served and 'videoar_train_heartbeat_timestamp_seconds{rank="1"}' in served
    return run


def test_losses_do_not_depend_on_ranks_or_zero_stage(config: Path, undisturbed: Path) -> None:
    # All nine pairs, three stages a launch: starting processes is what costs.
    for ranks in (1, 2, 3):
        training.several(
            config, ranks, {f"ranks{ranks}-zero{s}": [f"deepspeed.zero_optimization.stage={s}"] for s in (0, 2, 3)}
        )
        for stage in (0, 2, 3):
            run = config.parent / f"ranks{ranks}-zero{stage}"
            training.compare(undisturbed, run, exact_to=training.STEPS if (ranks, stage) == (2, 3) else 0)
    golden = json.loads(GOLDEN.read_text())
    lines = training.metrics(undisturbed)
    assert [line["sample_ids"][0] for line in lines] == golden["first_ids"]
    assert [line["loss"] for line in lines] == pytest.approx(golden["losses"], rel=1e-5)
    assert lines[-1]["loss"] < 0.75 * lines[0]["loss"]


def test_deterministic_mode_repeats_itself_at_any_number_of_threads(config: Path, undisturbed: Path) -> None:
    plain = ["train.deterministic=true", "train.threads=2", "train.stop_after=6"]
    offload = "{stage: 3, offload_optimizer: {device: cpu}, offload_param: {device: cpu}}"
    runs = {"offload": ["train.stop_after=6", f"deepspeed.zero_optimization={offload}"]}
    training.several(config, 1, {"deterministic-1": plain, "deterministic-2": plain, **runs}, code=75)
    # Offload is where the state lies, not what it is.
    training.compare(_head(undisturbed, 6), config.parent / "offload", exact_to=0)
    first, second = config.parent / "deterministic-1", config.parent / "deterministic-2"
    training.compare(first, second)
    training.compare(undisturbed.with_name("undisturbed-6"), first, exact_to=0)
    assert "deterministic algorithms: on" in (config.parent / "deterministic-1" / "log" / "rank-0.log").read_text()


def test_kills_damage_and_other_numbers_of_ranks_change_nothing(config: Path, undisturbed: Path) -> None:
    run = config.parent / "disturbed"
    # kill -9 of one rank: the job ends with an error.
    process = training.start(config, 2, run)
    training.until(process, "step 11/20")  # the checkpoint of step 8 is there, also on a slow disk
    training.rank_process(process, 1).kill()
    process.communicate(timeout=training.PATIENCE)
    assert process.returncode not in (0, 75)
    # One byte of the newest checkpoint flips: the one before is used.
    newest = max((run / "checkpoints").glob("step-????????"))
    file = next((newest / "zero").glob("*optim_states.pt"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    # SIGTERM to one rank: a checkpoint and exit code 75 for all.
    process = training.start(config, 2, run)
    said = training.until(process, "step 10/20")
    assert f"checkpoint {newest.name} is damaged and skipped: zero/{file.name} does not match its sha256" in said
    training.rank_process(process, 1).send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=training.PATIENCE)
    assert process.returncode == 75, said + rest
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "stopped" and status["line"] == "SIGTERM" and 10 <= status["step"] < 16
    # The stop file, and train.stop_after.
    training.train(config, 2, run, "train.stop_after=16", code=75)
    training.compare(_head(undisturbed, 16), run)
    # Another number of ranks, through DeepSpeed's universal format: 2, 3, 1.
    said = training.train(config, 3, run, "train.stop_after=18", code=75)
    assert "was written by 2 ranks, this job has 3: converting" in said
    training.train(config, 1, run)
    training.compare(undisturbed, run, exact_to=16)
    # A finished run says so.
    assert "finished, all 20 steps are trained" in training.train(config, 1, run)
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["step-00000012", "step-00000016", "step-00000018", "step-00000020"]  # three newest, ends of stages


def _head(run: Path, steps: int) -> Path:
    copy = run.with_name(f"{run.name}-{steps}")
    copy.mkdir()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[:steps]))
    return copy


def test_an_exported_model_is_the_trained_one(undisturbed: Path, tmp_path: Path) -> None:
    import torch
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    from pretrain.checkpoint.export import describe, export, load_model
    from pretrain.checkpoint.train_state import TrainedStage

    export(undisturbed, tmp_path / "plain", average=False)
    export(undisturbed, tmp_path / "average")
    model = load_model(tmp_path / "plain")
    theirs = get_fp32_state_dict_from_zero_checkpoint(str(undisturbed / "checkpoints" / "step-00000020"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, theirs[f"model.{name}"]), name
    averaged = load_model(tmp_path / "average").state_dict()
    assert not torch.equal(averaged["head.weight"], model.state_dict()["head.weight"])
    found = describe(tmp_path / "average")
    assert found.averaged and found.step == 20 and found.spec.digest == "0" * 64
    # What inference needs is that of the last stage, window 1, and little of the average is the start.
    assert found.objective.window == 1 and found.trained == TrainedStage(
        "high", 1, ("f005x64x64",), 8.0, "float32", 0.1, (1.0, 5.0, 10.0)
    )
    assert 0 < found.start_share < 1e-4
    export(undisturbed / "checkpoints" / "step-00000012", tmp_path / "first")
    first = describe(tmp_path / "first")
    assert first.objective.window == 0 and first.trained is not None and first.trained.shapes == ("f009x32x32", "f001x32x32")


def alone(
    config: Path, run: Path, *overrides: str, rank: int = 0, world: int = 1, port: int = 0, limit: int = 0
) -> subprocess.Popen[str]:
    """Start one rank by hand. limit: largest file in bytes that it may write."""
    env = training.environment() | {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_SIZE": str(world),
    }
    if port:
        env["MASTER_PORT"] = str(port)
    return subprocess.Popen(
        [sys.executable, "-m", "pretrain.train", "-c", str(config), f"run.dir={run}", *overrides],
        env=env,
        cwd=config.parent,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None,
    )


def test_a_full_disk_costs_a_checkpoint_and_nothing_else(config: Path, undisturbed: Path) -> None:
    run = config.parent / "full-disk"
    zero = "deepspeed.zero_optimization.stage=0"
    first = alone(config, run, zero, "train.stop_after=4")
    assert first.communicate(timeout=training.PATIENCE) and first.returncode == 75
    second = alone(config, run, zero, limit=150_000)
    said, _ = second.communicate(timeout=training.PATIENCE)
    # All 20 steps are trained, and success would be a lie.
    assert second.returncode == 1 and "step 20 is trained, but its checkpoint is not on the disk" in said, said
    assert (
        "checkpoint of step 8 could not be written (rank 0: " in said and "older checkpoints stay, training continues" in said
    )
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]
    training.compare(undisturbed, run, exact_to=0)


def test_validation_samples_bf16_and_a_corrupt_sample_in_one_run(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from pipeline.records import Bucket
    from pipeline.shards.dataset import ShardDataset
    from tests.helpers.made_shards import SPEC, make

    config = training.prepare(tmp_path)
    make(tmp_path / "held-out", training.BUCKETS, salt="held-out")
    row = ShardDataset.open(tmp_path / "shards").rows(Bucket.parse("f009x32x32")).slice(0, 1).to_pylist()[0]
    with (tmp_path / "shards" / f"{row['shard']}.tar").open("r+b") as file:
        file.seek(row["bits_offset"] + row["bits_size"] // 2)
        file.write(b"\x00\xff\x00\xff")
    run = tmp_path / "run"
    job = alone(
        config,
        run,
        "train.dtype=bfloat16",
        "train.activation_checkpointing=full",
        "train.samples=2",
        "train.tensorboard=true",
        "train.validate_every=6",
        "train.validation_samples=12",
        f"curriculum.validation=[{tmp_path / 'held-out'}]",
        "objective.condition_drop=0.0",
        "sample.guidance=[1,1]",
        "sample.guidance_end=1",
    )
    said, _ = job.communicate(timeout=training.PATIENCE)
    assert job.returncode == 0, said
    lines = training.metrics(run)
    assert len(lines) == 20 and lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    # The corrupt sample is named, counted, and never among the samples trained on.
    assert f"sample {row['key']} is corrupt; rank 0 read " in said
    assert all(row["key"] not in line["sample_ids"] for line in lines)
    held = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert [(item["step"], item["bucket"]) for item in held] == [
        (6, "f009x32x32"),
        (6, "f009x32x32:1"),
        (12, "f009x32x32"),
        (12, "f009x32x32:1"),
        (18, "f005x64x64"),
        (20, "f005x64x64"),
    ]
    assert held[2]["loss"] < held[0]["loss"] and set(held[0]["scale_loss"]) == {"1x1", "2x2", "3x3", "4x4"}
    assert len(held[0]["frame_loss"]) == 3
    for step, grid in ((12, (3, 4, 4)), (20, (2, 8, 8))):
        folder = run / "samples" / f"step-{step:08d}"
        bits = load_file(folder / "bits.safetensors")["bits"]
        assert tuple(bits.shape) == (2, grid[0] * SPEC.frame_bytes(*grid[1:]))
        assert len(json.loads((folder / "captions.json").read_text())["captions"]) == 2
    assert any((run / "tensorboard").iterdir())


def test_ranks_that_differ_are_refused_by_name(config: Path) -> None:
    port, run = free_port(), config.parent / "differ"
    both = [alone(config, run, f"train.clip={1.0 + rank}", rank=rank, world=2, port=port) for rank in range(2)]
    said = [process.communicate(timeout=training.PATIENCE)[0] for process in both]
    assert [process.returncode for process in both] == [2, 2], "no restart mends it"
    for text in said:
        assert "rank 1 on " in text and "`train.clip` is 2.0 there and 1.0 on rank 0" in text
        assert "Traceback" not in text


@pytest.mark.parametrize(("ranks", "stages"), [(2, (0, 1, 2, 3)), (1, (3,))])
def test_a_skipped_step_leaves_no_trace_at_any_stage(tmp_path: Path, ranks: int, stages: tuple[int, ...]) -> None:
    import torch

    from pretrain.engine.config import TrainConfig
    from pretrain.engine.optimizer import adamw
    from tests.helpers import skip_worker

    command = [*training.launcher(ranks, "tests.helpers.skip_worker"), str(tmp_path), *map(str, stages)]
    done = subprocess.run(command, env=training.environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [case for case in skip_worker.CASES if case[0] in stages]
    found = [json.loads((tmp_path / f"{stage}-{dtype}-{kind}.json").read_text()) for stage, dtype, kind in cases]
    digests = {(item["dtype"], item["kind"]): item["digest"] for item in found if item["stage"] == 3}
    for dtype in ("float32", "bfloat16"):
        assert digests[dtype, ""] == digests[dtype, "stock"], (
            f"{dtype}: weights or moments differ from those of DeepSpeed's own step"
        )
    # Weights and moments, bit by bit, equal those of a run that never saw the step; the other steps were applied.
    for item in found:
        assert item["equal"] == [True, True], item
        assert item["applied"] == [[True, True, False, True]] * 2
    # And the run itself is plain torch: gradients of a module used twice, accumulated over two micro-batches and two ranks.
    torch.manual_seed(5)
    module = skip_worker.Twice()
    optimizer = adamw(module, TrainConfig(learning_rate=1e-2))
    norms = []
    for step in (1, 2, 4):
        optimizer.zero_grad()
        for micro in range(2):
            module(skip_worker.batch(step, micro, 0, 1), 0, 0.0)["loss"].backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)))
        optimizer.step()
    for item in found:
        assert item["norms"] == pytest.approx(norms, rel=1e-5 if item["dtype"] == "float32" else 1e-2)
