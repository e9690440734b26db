import threading
from collections.abc import Sequence

import pytest

from cluster.hosts.hostfile import Host
from cluster.hosts.roster import MENDS, NoHost, Roster

HOSTS = tuple(Host(name, 2, line) for line, name in enumerate("abc", start=1))


class World:
    """Hosts that answer or not, and a clock."""

    def __init__(self, least: int = 1) -> None:
        self.up, self.time, self.said, self.cleared = {"a", "b", "c"}, 0.0, list[str](), list[bool]()
        self.roster = Roster(HOSTS, least, 600.0, self.answering, self.said.append, 0.01, now=lambda: self.time)

    def answering(self, hosts: Sequence[Host], clear: bool) -> list[str]:
        self.cleared.append(clear)
        return ["" if host.name in self.up else "no route" for host in hosts]

    def muster(self) -> str:
        return "".join(host.name for host in self.roster.muster(lambda seconds: True))


def test_a_host_that_does_not_answer_is_left_out_and_comes_back() -> None:
    world = World()
    assert world.muster() == "abc" and world.said == []
    world.up = {"a", "c"}
    assert world.muster() == "ac" and world.said == ["going on with 2 of 3 hosts, without b: no route"]
    world.up = {"a", "b", "c"}
    assert world.muster() == "abc"


def test_a_host_that_fails_first_twice_in_succession_rests() -> None:
    world = World()
    for name, active in (("b", "abc"), ("c", "abc"), ("b", "abc"), ("", "abc"), ("b", "abc"), ("b", "ac")):
        world.roster.failed(name)
        assert world.muster() == active, name
    world.time = 599
    assert world.muster() == "ac"
    world.time = 601
    assert world.muster() == "abc"


def test_too_few_hosts_are_waited_for_until_the_job_is_to_stop() -> None:
    world, waited = World(least=2), list[float]()
    world.up = {"b"}

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        world.up = {"b", "c"}
        return False

    assert [host.name for host in world.roster.muster(wait)] == ["b", "c"] and len(waited) == 1
    assert world.said[0] == "1 of 3 hosts are ready, 2 are needed: waiting"
    world.up = set()
    assert world.muster() == ""


def test_hosts_of_which_none_ever_answered_are_an_error_and_not_waited_for() -> None:
    """A mistyped hostfile or a wrong key: the launch asked again and again, and never said why."""
    world = World()
    world.up = set()
    with pytest.raises(
        NoHost, match=r"none of the 3 hosts answers \(a: no route, b: no route, c: no route\); .*`videoar preflight"
    ):
        world.muster()
    world.up = {"a"}
    assert world.muster() == "a"
    world.up = set()
    assert world.muster() == "", "hosts that were there are waited for"


@pytest.mark.parametrize(("via", "named"), [("slurm", "--via slurm"), ("ray", "`ray status`")])
def test_what_to_look_at_fits_the_way_in_which_hosts_are_reached(via: str, named: str) -> None:
    """A job under Slurm was told to check its hostfile and keys."""
    world = World()
    world.up, world.roster.mend = set(), MENDS[via]
    with pytest.raises(NoHost, match=named) as told:
        world.muster()
    assert "hostfile" not in str(told.value)


def test_hosts_that_answer_again_are_told_once_while_a_job_runs() -> None:
    world, told, called = World(), list[str](), threading.Event()
    world.up = {"a"}
    world.muster()

    def returned(names: str) -> None:
        told.append(names)
        called.set()

    with world.roster.watching(returned):
        assert not called.wait(0.1)
        world.up = {"a", "c"}
        assert called.wait(30)
    assert told == ["c"] and world.cleared[0] and not any(world.cleared[1:]), "nothing is killed beside a running start"
    world.up = {"a", "b", "c"}
    world.muster()
    with world.roster.watching(returned):
        threading.Event().wait(0.05)
    assert told == ["c"], "nobody is missing"
