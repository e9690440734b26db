"""The files for Kubernetes against the schemas that JobSet and KubeRay publish, and the training file by what its fields do."""

import copy
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.main import get_command

from cluster.batch.pods import Pod
from cluster.cli import main
from cluster.config import ClusterConfig, load
from cluster.runtime.job_protocol import STOPPED, USAGE

HERE = Path(__file__).parents[3]
FILES = sorted((HERE / "cluster/kubernetes").glob("*.yaml"))


@cache
def schemas() -> Any:
    return json.loads((HERE / "tests/data/kubernetes.json").read_text())


def problems(document: Any) -> list[str]:
    """What the API server would refuse: unknown and missing keys, wrong types and values. Rules in its CEL are not evaluated."""
    group, _, version = document["apiVersion"].partition("/")
    schema = {**schemas(), "$ref": f"#/$defs/{group}.{version}.{document['kind']}"}
    found = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{'.'.join(map(str, each.absolute_path))}: {each.message}" for each in found]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_file_is_valid(file: Path) -> None:
    [document] = yaml.safe_load_all(file.read_text())
    assert not problems(document)


def trainer(document: Any) -> Any:
    return document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda d: d["spec"].update(replicas=2), "spec: Additional properties are not allowed ('replicas' was unexpected)"),
        (lambda d: trainer(d).update(comand=["x"]), "'comand' was unexpected"),
        (lambda d: trainer(d).pop("name"), "'name' is a required property"),
        (lambda d: trainer(d)["ports"][0].update(containerPort="29500"), "'29500' is not of type 'integer'"),
        (lambda d: d["spec"]["failurePolicy"]["rules"][0].update(action="Fail"), "'Fail' is not one of"),
        (lambda d: trainer(d)["env"][0].update(value=4), "4 is not of type 'string'"),
    ],
)
def test_the_check_finds_what_is_wrong(break_it: Any, said: str) -> None:
    document = copy.deepcopy(yaml.safe_load((HERE / "cluster/kubernetes/jobset-train.yaml").read_text()))
    break_it(document)
    assert any(said in each for each in problems(document)), problems(document)


def test_the_training_file_fits_the_program_that_it_starts() -> None:
    document = yaml.safe_load((HERE / "cluster/kubernetes/jobset-train.yaml").read_text())
    jobs, job = document["spec"]["replicatedJobs"], document["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod, container = job["template"]["spec"], trainer(document)
    program, command, *options = container["command"]
    assert program == "videoar"
    known: Any = get_command(main.app)
    known.commands[command].make_context(command, list(options))
    overrides = [word for word in options if "=" in word]
    grace = load(HERE / "configs/ucf101.yaml", overrides).get(ClusterConfig).stop_grace_seconds
    assert pod["terminationGracePeriodSeconds"] >= grace + 30, "killed before it has written its checkpoint"

    # Its pods are one job, and find each other.
    assert len(jobs) == 1 and jobs[0]["replicas"] == 1 and job["completionMode"] == "Indexed", "sets JOB_COMPLETION_INDEX"
    env = {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}
    place = Pod.of({**env, "JOB_COMPLETION_INDEX": str(job["completions"] - 1)})
    assert place.count == job["completions"] == job["parallelism"]
    network = document["spec"]["network"]
    assert network["enableDNSHostnames"] and network["publishNotReadyAddresses"], "ranks meet before their pods are ready"
    assert place.address == f"{document['metadata']['name']}-{jobs[0]['name']}-0-0.{network['subdomain']}"
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports["rendezvous"] == place.port and f"metrics.port={ports['videoar-metrics']}" in overrides
    assert all(len(name) <= 15 for name in ports)
    assert env["POD_IP"] == {"fieldRef": {"fieldPath": "status.podIP"}}, "what Prometheus is told (cluster/metrics/endpoint.py)"
    selector = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]["labelSelector"]
    assert selector["matchLabels"].items() <= job["template"]["metadata"]["labels"].items()

    # A failure restarts all pods, a wrong configuration none, and a stop does not count.
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    codes = [each["onExitCodes"]["values"] for each in job["podFailurePolicy"]["rules"] if "onExitCodes" in each]
    assert codes == [[USAGE], [STOPPED]]
    assert {each.get("onExitCodes", {}).get("containerName", "trainer") for each in job["podFailurePolicy"]["rules"]} == {
        "trainer"
    }
    actions = []
    for code in (USAGE, STOPPED):  # the message of Kubernetes' job controller
        message = f"Container trainer for pod d/videoar-train-pods-0-1-x failed with exit code {code} matching FailJob rule at index 0"
        rules = document["spec"]["failurePolicy"]["rules"]
        patterns = [(rule["action"], rule.get("onJobFailureMessagePatterns", [""])) for rule in rules]
        actions.append(next(action for action, listed in patterns if any(re.search(each, message) for each in listed)))
    assert actions == ["FailJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
    assert document["spec"]["failurePolicy"]["restartStrategy"] == "BlockingRecreate"

    volumes = {each["name"] for each in pod["volumes"]}
    assert {each["name"] for each in container["volumeMounts"]} == volumes
    assert {"/data", "/config", "/dev/shm"} == {each["mountPath"] for each in container["volumeMounts"]}
    assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) > 0
