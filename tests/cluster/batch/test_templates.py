"""The Slurm script, run with stand-ins for Slurm's and our own commands; the Kubernetes file, read."""

import os
import re
import shlex
import signal
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from cluster import supported
from cluster.cli import main
from cluster.config import load

SCONTROL = """#!/bin/sh
case "$1" in
  show) echo "JobId=17 JobName=videoar JobState=${STATE:-RUNNING} Reason=None" ;;
  requeue) echo "$2" > requeued ;;
esac
"""
VIDEOAR = """#!/usr/bin/env python3
import os, signal, sys
open("arguments", "w").write("".join(f"{word}\\n" for word in sys.argv[1:]))
if os.environ["ACT"] != "wait":
    sys.exit(int(os.environ["ACT"]))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
open("ready", "w").write("ready")
while True:
    signal.pause()
"""


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    for name, text in (("scontrol", SCONTROL), ("videoar", VIDEOAR)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    os.mkfifo(tmp_path / "ready")
    env = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "17",
    }
    return {"cwd": tmp_path, "env": env, "text": True}


@pytest.mark.parametrize(("code", "queued"), [(0, False), (1, False), (2, False), (75, True)])
def test_slurm_launches_on_the_nodes_and_requeues_what_stopped_cleanly(
    root: Path, job: dict[str, Any], code: int, queued: bool
) -> None:
    job["env"]["ACT"] = str(code)
    words = ["bash", str(root / "cluster/slurm/train.sbatch"), "my run.yaml", "train.clip=2"]
    done = subprocess.run(words, capture_output=True, check=False, timeout=60, **job)
    assert done.returncode == code, done.stderr
    assert (job["cwd"] / "requeued").exists() == queued
    arguments = (job["cwd"] / "arguments").read_text().splitlines()
    assert arguments == ["launch", "-c", "my run.yaml", "--via", "slurm", "train.clip=2"]


@pytest.mark.parametrize("warning", [signal.SIGTERM, signal.SIGUSR1])
def test_slurms_warning_reaches_the_job_and_its_exit_code_counts(root: Path, job: dict[str, Any], warning: int) -> None:
    job["env"]["ACT"] = "wait"
    words = ["bash", str(root / "cluster/slurm/train.sbatch"), "run.yaml"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, **job) as script:
        (job["cwd"] / "ready").read_text()
        script.send_signal(warning)
        text, _ = script.communicate(timeout=60)
    assert script.returncode == 75, text
    assert (job["cwd"] / "requeued").read_text() == "17\n"


def test_a_cancelled_job_is_not_brought_back(root: Path, job: dict[str, Any]) -> None:
    job["env"] |= {"ACT": "75", "STATE": "COMPLETING"}
    words = ["bash", str(root / "cluster/slurm/train.sbatch"), "run.yaml"]
    done = subprocess.run(words, capture_output=True, check=False, timeout=60, **job)
    assert done.returncode == 75 and "submit it again to go on" in done.stdout
    assert not (job["cwd"] / "requeued").exists()


def test_slurm_without_a_configuration_says_how(root: Path, job: dict[str, Any]) -> None:
    done = subprocess.run(["bash", str(root / "cluster/slurm/train.sbatch")], capture_output=True, check=False, **job)
    assert done.returncode == 2 and done.stderr.startswith("usage: sbatch")


def test_rayjob_runs_a_command_that_exists_with_the_locked_ray(root: Path) -> None:
    found = yaml.safe_load((root / "cluster/kubernetes/rayjob-tokenize.yaml").read_text())
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayJob")
    program, command, *options = shlex.split(found["spec"]["entrypoint"])
    assert program == "videoar"
    known: Any = get_command(main.app)
    known.commands[command].make_context(command, list(options))  # raises on an option that does not exist
    # What each field does, not only what it is called.
    keys = dict(word.split("=") for word in options[2:])
    head, [group] = found["spec"]["rayClusterSpec"]["headGroupSpec"], found["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    [worker], meta = group["template"]["spec"]["containers"], head["template"]["metadata"]
    gpus = int(worker["resources"]["limits"]["nvidia.com/gpu"])
    assert gpus == float(keys["pipeline.gpus_per_worker"]) > 0, "pods that claim GPUs use them"
    assert int(keys["pipeline.workers"]) == group["maxReplicas"], "a pod for each worker"
    assert float(keys["pipeline.cpus_per_worker"]) < float(worker["resources"]["requests"]["cpu"]), "planning tasks find a core"
    assert found["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True, "else the numbers of replicas are one"
    assert keys["metrics.host"] == "0.0.0.0" and meta["annotations"]["prometheus.io/port"] == keys["metrics.port"]
    ports = {each["name"]: each["containerPort"] for each in head["template"]["spec"]["containers"][0]["ports"]}
    assert ports["metrics"] == 8080, "the name is Ray's own, and KubeRay adds none where it is taken"
    assert ports["videoar-metrics"] == int(keys["metrics.port"]) and all(len(each) <= 15 for each in ports)
    load(root / "configs/ucf101.yaml", options[2:])  # an unknown key, or a value out of its range, is an error
    locked = re.search(r"^ray(?:\[.*\])?==(\S+)$", (root / "requirements.lock").read_text(), re.MULTILINE)
    cluster = found["spec"]["rayClusterSpec"]
    assert locked is not None and cluster["rayVersion"] == locked[1]
    templates = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    for template in templates:
        volumes = {volume["name"] for volume in template["spec"]["volumes"]}
        for container in template["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/config"}
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    assert Path(options[1]).parent == Path("/config")
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_image_holds_what_a_set_up_needs_and_is_the_one_that_kubernetes_runs(root: Path) -> None:
    lines = (root / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    image = f"videoar-pretrain:{project['version']}"
    assert f"#   docker build -t {image} ." in lines
    found = yaml.safe_load((root / "cluster/kubernetes/rayjob-tokenize.yaml").read_text())["spec"]["rayClusterSpec"]
    templates = [found["headGroupSpec"]["template"], *(group["template"] for group in found["workerGroupSpecs"])]
    assert {each["image"] for template in templates for each in template["spec"]["containers"]} == {image}
    user = re.search(r"--uid (\d+)", "\n".join(lines))
    assert user is not None and all(template["spec"]["securityContext"] == {"fsGroup": int(user[1])} for template in templates)

    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[2:-1]]
    assert all((root / word).exists() for word in copied)
    used = {"setup.sh", "Makefile", "pyproject.toml", "requirements.lock", "requirements-data.txt", "README.md", "configs/"}
    assert {*used, "cluster/", "pipeline/", "pretrain/", "tokenizer/"} <= set(copied), "recipes is a link to configs"
    ignored = (root / ".dockerignore").read_text().split()
    text = "\n".join(lines)
    assert " wget " in text and "/etc/profile.d/videoar.sh" in text, "KubeRay's probes and its login shell"
    assert not {word.strip("/") for word in copied} & {word.strip("/") for word in ignored}


def test_the_image_keeps_the_torch_of_its_base(root: Path) -> None:
    text = (root / "Dockerfile").read_text()
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE))
    assert arguments["TORCH"] == "system" and "RUN make setup TORCH=${TORCH}" in text
    torch = re.fullmatch(r"pytorch/pytorch:(\d+\.\d+\.\d+)-cuda[\d.]+-cudnn\d+-runtime", arguments["BASE"])
    assert torch is not None and not supported.wrong_torch(torch[1])
    assert "pip install" not in text, "what is installed is what setup.sh installs"
    for line in re.findall(r"--build-arg BASE=python:(\d+)\.(\d+)", text):
        assert not supported.wrong_python((int(line[0]), int(line[1])))
