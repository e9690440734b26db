from typing import Any

import pytest
import ray

from cluster.hosts import ray_nodes
from cluster.hosts.ray_nodes import Node, RayClusterError, environment_of_workers, hosts_of, join, nodes
from cluster.runtime.ports import free_port

HEAD, WORKER, CPUS = (
    Node("head", "0", "10.0.0.1", 4.0, 0),
    Node("gpu", "1", "10.0.0.2", 64.0, 8),
    Node("cpu", "2", "10.0.0.3", 2.0, 0),
)


@pytest.fixture(autouse=True)
def no_wish_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)


def test_ranks_run_where_the_gpus_are() -> None:
    assert [(host.name, host.slots) for host in hosts_of([HEAD, WORKER, CPUS], 0)] == [("gpu", 8)]
    assert [(host.name, host.slots) for host in hosts_of([WORKER], 4)] == [("gpu", 4)]
    with pytest.raises(RayClusterError, match=r"cluster.ranks_per_host is 9, but node gpu has 8 GPU\(s\)"):
        hosts_of([WORKER], 9)


def test_without_gpus_ranks_run_where_ray_has_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that is started with --num-cpus=0 schedules only."""
    nothing = Node("head", "0", "10.0.0.1", 0.0, 0)
    assert [(host.name, host.slots) for host in hosts_of([nothing, CPUS], 2)] == [("cpu", 2)]
    with pytest.raises(RayClusterError, match="no node of the cluster has a CPU"):
        hosts_of([nothing], 0)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert [(host.name, host.slots) for host in hosts_of([WORKER, CPUS], 0)] == [("gpu", 1), ("cpu", 1)]


class Cluster:
    """What Ray says of its nodes."""

    def __init__(self, *named: tuple[str, str]) -> None:
        self.named = named

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "Alive": name != "dead",
                "NodeName": name,
                "NodeID": id,
                "NodeManagerAddress": "10.0.0.1",
                "Resources": {"CPU": 2.0},
            }
            for name, id in self.named
        ]

    def get_runtime_context(self) -> "Cluster":
        return self

    def get_node_id(self) -> str:
        return "here"


def test_the_own_node_comes_first_and_dead_ones_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_nodes, "ray", Cluster(("b", "2"), ("dead", "3"), ("a", "1"), ("z", "here")))
    assert [node.name for node in nodes()] == ["z", "a", "b"]


def test_names_must_tell_nodes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_nodes, "ray", Cluster(("a", "1"), ("a", "2")))
    with pytest.raises(RayClusterError, match="2 nodes are called a; start each with its own --node-name"):
        nodes()
    monkeypatch.setattr(ray_nodes, "ray", Cluster(("a b", "1")))
    with pytest.raises(RayClusterError, match="the name of a node: `a b` is not a host name"):
        nodes()


def test_no_cluster_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**given: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nMore.")

    monkeypatch.setattr(ray, "init", refuse)
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RayClusterError, match=r"cannot join a Ray cluster at auto: Could not find .* set RAY_ADDRESS") as said:
        join()
    assert "\n" not in str(said.value) and str(said.value).endswith("set RAY_AUTH_MODE=token")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(RayClusterError, match=r"set RAY_ADDRESS=HOST:6379$"):
        join()
    monkeypatch.setattr(ray, "init", lambda **given: pytest.fail("Ray asks such an address for minutes"))
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(
        RayClusterError, match=f"cannot join a Ray cluster at {address}: nothing answers there .* set RAY_ADDRESS"
    ):
        join()


def test_only_the_search_path_stands_where_ray_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/clone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    assert environment_of_workers() == {"env_vars": {"PYTHONPATH": "/clone"}}
    monkeypatch.delenv("PYTHONPATH")
    assert environment_of_workers() == {}


def test_a_command_looks_at_a_node_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray hides GPUs by an empty list from tasks that asked for none; a list that is not empty is the operator's."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = ray_nodes._complete("cat; echo ${CUDA_VISIBLE_DEVICES-unset}; echo wrong >&2; exit 3", b"given\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"given\nunset\n", b"wrong\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert ray_nodes._complete("echo $CUDA_VISIBLE_DEVICES", b"").stdout == b"1\n"
