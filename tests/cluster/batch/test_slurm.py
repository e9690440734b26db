"""Jobs in a Slurm allocation: the words of a step, and a real Slurm that preempts, signals and requeues a training job."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.batch.slurm import SlurmError, gpus_per_node, nodes, srun_command
from cluster.config import load
from cluster.launch.launcher import LaunchError, training_job
from cluster.metrics import last_step
from tests.helpers import training
from tests.helpers.slurm import Slurm, slurm, until

STEPS = 120


def test_a_step_takes_a_whole_node_and_nothing_of_what_the_allocation_was_asked_for() -> None:
    env = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS": "32", "SLURM_MEM_PER_CPU": "100", "SLURM_GPUS": "32"}
    words = srun_command(env, "node-3", "true")
    unset = {words[number + 1] for number, word in enumerate(words) if word == "-u"}
    assert unset == {"SLURM_NTASKS", "SLURM_MEM_PER_CPU", "SLURM_GPUS"}
    assert words[-3:] == ["sh", "-c", "true"] and words[words.index("srun") + 1 :][-4:-3] == ["--nodelist=node-3"]
    assert {"--nodes=1", "--ntasks=1", "--mem=0", "--gpus-per-node=8", "--overlap"} <= set(words)
    assert gpus_per_node({}) == 0 and not any("gpus" in word for word in srun_command({}, "n", "true"))


def test_outside_of_an_allocation_there_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (tmp_path / "c.yaml").write_text("run: {name: x}\n")
    config = load(tmp_path / "c.yaml")
    with pytest.raises(SlurmError, match=r"SLURM_JOB_ID is not set; submit cluster/slurm/train\.sbatch"):
        training_job(config, via="slurm")
    with pytest.raises(LaunchError, match="takes no --hostfile"):
        training_job(config, via="slurm", hostfile=tmp_path / "hosts")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match="needs `scontrol` on this machine"):
        nodes({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"})


def prepared(folder: Path) -> Path:
    """A job of some ten seconds, whose only checkpoints are those of a stop and of its end."""
    config = training.prepare(folder)
    text = config.read_text().replace("steps: 12", "steps: 100").replace("steps: 8", f"steps: {STEPS - 100}")
    config.write_text(text.replace("checkpoint_every: 4", "checkpoint_every: 1000"))
    return config


def submit(cluster: Slurm, config: Path, run: Path, *overrides: str) -> str:
    """Submit the script as a user would; returns the job's number."""
    env = training.environment()
    env["PATH"] = f"{Path(sys.executable).parent}:{cluster.env['PATH']}"
    words = [
        "sbatch",
        "--parsable",
        "--nodes=2",
        "--gpus-per-node=1",
        "-p",
        "low",
        f"--output={run}.log",
        f"--chdir={training.ROOT}",
    ]
    script = str(training.ROOT / "cluster/slurm/train.sbatch")
    return cluster.call(*words, script, str(config), f"run.dir={run}", "cluster.master_addr=127.0.0.1", *overrides, **env)


def steps(run: Path) -> int:
    return last_step(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else 0


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.parent.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*/DONE"))


@pytest.mark.system
def test_a_job_that_is_preempted_and_cancelled_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    config, run, plain = prepared(tmp_path), tmp_path / "run", tmp_path / "plain"
    folder = tmp_path / "slurm"
    folder.mkdir()
    with slurm(folder) as cluster:

        def wait(ready: Callable[[], bool], what: str) -> None:
            until(ready, what, folder, training.PATIENCE)

        def disturbed(number: str, *words: str) -> int:
            """Disturb the job once it trains, wait until it is queued again; returns the step of its newest checkpoint."""
            before, restarts = steps(run), int(cluster.job(number)["Restarts"])
            wait(lambda: steps(run) > before + 5, "the job trains")
            other = subprocess.Popen(words, env=dict(cluster.env), cwd=folder)
            wait(lambda: int(cluster.job(number)["Restarts"]) > restarts, "the job is requeued")
            assert other.wait() == 0
            newest = checkpoints(run)[-1]
            assert before < newest < STEPS, "the checkpoint is that of this stop"
            return newest

        number = submit(cluster, config, run)
        preempted = disturbed(number, "srun", "--partition=high", "--nodes=2", "--quiet", "true")
        wait(lambda: steps(run) > preempted, "the job goes on")
        cluster.call("scancel", number)
        wait(lambda: cluster.job(number)["JobState"] == "CANCELLED", "a cancelled job stays so, with a checkpoint")
        assert checkpoints(run)[-1] > preempted
        again = submit(cluster, config, run)
        training.train(config, 2, plain)
        wait(lambda: cluster.job(again)["JobState"] not in ("RUNNING", "PENDING", "COMPLETING"), "the job ends")
        log = Path(f"{run}.log").read_text()
        assert cluster.job(again)["JobState"] == "COMPLETED" and cluster.job(number)["Restarts"] == "1", log
        assert log.count("2 rank(s)") == 3, log
        # Prometheus is elsewhere.
        assert "127.0.0.1" not in json.loads((run / "metrics-target.json").read_text())[0]["targets"][0]
        assert "[ERROR]" not in log and "restart 1 of" not in log, "a stop is no failure"
    training.compare(plain, run, exact_to=STEPS)
