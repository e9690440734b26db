"""Pods of a Kubernetes job: their place, and two of them as processes of this machine."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.batch.pods import Pod, PodError
from cluster.runtime.ports import free_port
from tests.helpers import training

PLACE = {"JOB_COMPLETION_INDEX": "1", "VIDEOAR_PODS": "3", "MASTER_ADDR": "train-pods-0-0.train", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"JOB_COMPLETION_INDEX": ""}, "JOB_COMPLETION_INDEX is not set; begin with kubernetes/jobset-train.yaml"),
        ({"VIDEOAR_PODS": "many"}, "VIDEOAR_PODS is many; begin with"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT is 0; begin with"),
        ({"JOB_COMPLETION_INDEX": "3"}, "JOB_COMPLETION_INDEX is 3, but VIDEOAR_PODS is 3; set it to the job's `completions`"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set; it is the name of the first pod"),
    ],
)
def test_a_place_that_is_missing_or_wrong_is_named(changed: dict[str, str], said: str) -> None:
    with pytest.raises(PodError) as caught:
        Pod.of({**PLACE, **changed})
    assert said in str(caught.value)


def test_each_pod_starts_its_own_ranks_and_meets_the_others_at_the_first(tmp_path: Path) -> None:
    pod = Pod.of(PLACE)
    assert pod == Pod(1, 3, "train-pods-0-0.train", 29500)
    words = pod.command(8, tmp_path / "hostfile", ("pretrain.train", "-c", "x.yaml"))
    assert (tmp_path / "hostfile").read_text() == "pod-0 slots=8\npod-1 slots=8\npod-2 slots=8\n"
    given = dict(zip(words[1::2], words[2::2], strict=False))
    assert given["--hostfile"] == str(tmp_path / "hostfile") and "--no_ssh" in words
    assert words[words.index("--node_rank") :][:6] == [
        "--node_rank", "1", "--master_addr", "train-pods-0-0.train", "--master_port", "29500",
    ]  # fmt: skip
    assert words[-4:] == ["--module", "pretrain.train", "-c", "x.yaml"]


def start(config: Path, *overrides: str, restarts: int = 0) -> list[subprocess.Popen[str]]:
    """Start the two pods of a job as their containers would."""
    common = {**training.environment(), "VIDEOAR_PODS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = [sys.executable, "-m", "cluster.cli.main", "launch", "-c", str(config), "--via", "pods", *overrides]
    return [
        subprocess.Popen(
            words,
            env={**common, "JOB_COMPLETION_INDEX": str(index), "VIDEOAR_RESTARTS": str(restarts)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in (0, 1)
    ]


def ended(pods: Sequence[subprocess.Popen[str]]) -> tuple[list[int], str]:
    texts = [pod.communicate(timeout=training.PATIENCE)[0] for pod in pods]
    return [pod.returncode for pod in pods], "\n".join(texts)


@pytest.mark.system
def test_a_drained_pod_stops_all_with_a_checkpoint_and_the_next_start_goes_on(tmp_path: Path) -> None:
    config = training.prepare(tmp_path)
    text = config.read_text().replace("steps: 12", "steps: 80").replace("checkpoint_every: 4", "checkpoint_every: 1000")
    config.write_text(text)
    run, plain = tmp_path / "run", tmp_path / "plain"
    pods = start(config, f"run.dir={run}")
    training.until(pods[0], "step 5/88")
    pods[1].send_signal(signal.SIGTERM)  # as the kubelet of a drained node does, to this pod alone
    codes, text = ended(pods)
    assert codes == [75, 75], text
    stopped = len(training.metrics(run))
    assert 5 < stopped < 88 and "[ERROR]" not in text, text
    codes, text = ended(start(config, f"run.dir={run}", restarts=1))
    assert codes == [0, 0], text
    training.train(config, 2, plain)
    training.compare(plain, run, exact_to=88)
    codes, text = ended(start(config, f"run.dir={tmp_path / 'wrong'}", "train.clip=-1"))
    assert codes == [2, 2], text
