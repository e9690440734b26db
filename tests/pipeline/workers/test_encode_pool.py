"""The driver's rules for encoding workers, on made-up actors and a made-up clock; real ones are in tests/pipeline/job."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from cluster.config import ClusterConfig
from cluster.metrics import Meter
from pipeline.config import PipelineConfig
from pipeline.encoding.encoder import GroupReport
from pipeline.workers import encode_pool
from pipeline.workers.encode_pool import Pool
from pipeline.workers.errors import JobError
from tokenizer.config import TokenizerConfig


class Call:
    """A reference: pending until it has a value, or an error to raise."""

    def __init__(self, name: str, *arguments: Any) -> None:
        self.name, self.arguments = name, arguments
        self.value: Any = None
        self.ready = False

    def answer(self, value: Any) -> None:
        self.value, self.ready = value, True


class Method:
    def __init__(self, actor: Actor, name: str) -> None:
        self._actor, self._name = actor, name

    def options(self, **_: Any) -> Method:
        return self

    def remote(self, *arguments: Any) -> Call:
        call = Call(self._name, *arguments)
        self._actor.calls.append(call)
        return call


class Actor:
    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.killed = 0
        self.ready, self.encode, self.beat = (Method(self, name) for name in ("ready", "encode", "beat"))

    def last(self, name: str) -> Call:
        return next(call for call in reversed(self.calls) if call.name == name)


class FakeRay:
    """What the pool uses of Ray, and the clock."""

    def __init__(self) -> None:
        self.actors: list[Actor] = []
        self.now = 1000.0
        self.waited: list[list[Call]] = []

    def options(self, **_: Any) -> Any:
        def remote(*_: Any) -> Actor:
            self.actors.append(Actor())
            return self.actors[-1]

        return SimpleNamespace(remote=remote)

    def wait(self, calls: list[Call], num_returns: int = 1, timeout: float = 0.0) -> tuple[list[Call], list[Call]]:
        self.waited.append(calls)
        ready = [call for call in calls if call.ready][:num_returns]
        return ready, [call for call in calls if call not in ready]

    def get(self, call: Call) -> Any:
        if isinstance(call.value, Exception):
            raise call.value
        return call.value

    def kill(self, actor: Actor) -> None:
        actor.killed += 1


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(encode_pool, "ray", fake)
    monkeypatch.setattr(encode_pool, "EncodeActor", fake)
    monkeypatch.setattr(encode_pool.time, "monotonic", lambda: fake.now)
    return fake


def pool_of(todo: list[int], meter: Meter, **fields: Any) -> Pool:
    sections: dict[type, Any] = {
        PipelineConfig: PipelineConfig(**{"stall_seconds": 30.0, **fields}),
        TokenizerConfig: TokenizerConfig(weights=Path("tokenizer")),
        ClusterConfig: ClusterConfig(),
    }
    config: Any = SimpleNamespace(get=sections.__getitem__)
    return Pool(config, todo, meter)


def finish(actor: Actor) -> None:
    call = actor.last("encode")
    call.answer(GroupReport(call.arguments[0], ()))


def drain(pool: Pool, times: int = 1) -> list[int]:
    return [report.group for _ in range(times) for report in pool.wait()]


def retries(meter: Meter) -> float | None:
    return meter.registry.get_sample_value("videoar_pipeline_retries_total", {"stage": "encode"})


def test_groups_go_out_in_order_each_worker_with_one_ahead(ray: FakeRay) -> None:
    pool = pool_of([0, 1, 2, 3, 4], Meter(), workers=2)
    first, second = ray.actors
    for actor in (first, second):
        actor.last("ready").answer(77)
        assert drain(pool) == []
    assert [actor.last("encode").arguments for actor in (first, second)] == [(0, 1), (2, 3)]
    finish(first)
    assert drain(pool) == [0] and first.last("encode").arguments == (1, 4)
    for actor, group in ((second, 2), (first, 1), (second, 3), (first, 4)):
        assert pool.busy
        finish(actor)
        assert drain(pool) == [group]
    assert not pool.busy
    pool.close()
    assert (first.killed, second.killed) == (1, 1)


def test_no_more_workers_than_groups(ray: FakeRay) -> None:
    pool_of([7], Meter(), workers=5)
    assert len(ray.actors) == 1


def test_the_oldest_call_is_waited_for_first(ray: FakeRay) -> None:
    """Ray returns one ready call at a time, in the order of the list: a quick worker must not keep the others waiting."""
    pool = pool_of([*range(8)], Meter(), workers=2)
    for actor in ray.actors:
        ray.now += 1
        actor.last("ready").answer(77)
        drain(pool)
    ray.now += 1
    finish(ray.actors[0])
    drain(pool)
    drain(pool)
    assert [call.arguments[0] for call in ray.waited[-1]] == [2, 1], "the second worker's call is older by now"


def test_a_dead_worker_gives_its_groups_back_and_is_replaced(ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter()
    pool = pool_of([0, 1, 2], meter)
    ray.actors[0].last("ready").answer(77)
    drain(pool)
    assert list(pool.todo) == [2]
    ray.actors[0].last("encode").answer(ActorDiedError())
    assert drain(pool) == [] and list(pool.todo) == [0, 1, 2] and pool.busy
    assert len(ray.actors) == 2 and ray.actors[0].killed == 1 and retries(meter) == 1
    assert capsys.readouterr().out.endswith("a new one takes over\n")
    ray.actors[1].last("ready").answer(78)
    drain(pool)
    assert ray.actors[1].last("encode").arguments == (0, 1)


def test_groups_of_a_dead_worker_go_to_those_that_had_none_left(ray: FakeRay) -> None:
    """The host of a worker has died, so that the one in its place finds no CPU: the job goes on with the other hosts."""
    pool = pool_of([0, 1, 2, 3], Meter(), workers=2)
    first, second = ray.actors
    for actor in (first, second):
        actor.last("ready").answer(77)
        drain(pool)
    for _ in range(2):
        finish(first)
        drain(pool)
    assert pool.busy and not pool.todo, "the first has done 0 and 1, and is idle"
    second.last("encode").answer(ActorDiedError())
    drain(pool)
    assert len(ray.actors) == 3 and first.last("encode").arguments == (2, 3)
    for group in (2, 3):
        finish(first)
        assert drain(pool) == [group]
    assert not pool.busy, "though the third never began"


def test_too_many_deaths_over_one_group_stop_the_job_and_name_it(ray: FakeRay) -> None:
    pool = pool_of([5, 6], Meter(), worker_deaths=2)
    for number in range(2):
        ray.actors[number].last("ready").answer(77)
        drain(pool)
        ray.actors[number].last("encode").answer(ActorDiedError())
        if number == 0:
            drain(pool)
    with pytest.raises(JobError, match=r"shard group 5: 2 workers died while encoding it .*; all other shards are kept"):
        drain(pool)


def test_workers_that_die_before_they_encode_stop_the_job(ray: FakeRay) -> None:
    pool = pool_of([5], Meter(), worker_deaths=2)
    ray.actors[0].last("ready").answer(ActorDiedError())
    drain(pool)
    ray.actors[1].last("ready").answer(ActorDiedError())
    with pytest.raises(JobError, match="workers die before they start encoding"):
        drain(pool)


def test_an_error_of_the_work_itself_ends_the_job_with_its_class(ray: FakeRay) -> None:
    pool = pool_of([5], Meter())
    ray.actors[0].last("ready").answer(RayTaskError("ready", "Traceback ...", JobError("no tokenizer there")))
    with pytest.raises(JobError, match="no tokenizer there"):
        drain(pool)


def test_a_worker_whose_count_does_not_change_is_killed_once_per_limit(
    ray: FakeRay, capsys: pytest.CaptureFixture[str]
) -> None:
    meter = Meter()
    pool = pool_of([0, 1], meter, stall_seconds=30.0)
    actor = ray.actors[0]
    actor.last("ready").answer(77)
    drain(pool)
    for steps in itertools.chain(range(20), [19] * 6):
        ray.now += 5.1
        drain(pool)
        actor.last("beat").answer(steps)
    assert actor.killed == 0, "it moved until 30 s ago"
    for _ in range(3):
        ray.now += 5.1
        drain(pool)
        actor.last("beat").answer(19)
    assert actor.killed == 1 and capsys.readouterr().out == "worker 0: no clip for pipeline.stall_seconds = 30 s; killing it\n"
    for _ in range(7):
        ray.now += 5.1
        drain(pool)
    assert actor.killed == 2, "it survived the first kill"
    found = meter.registry.get_sample_value("videoar_pipeline_worker_heartbeat_timestamp_seconds", {"worker": "0"})
    assert found is not None and found > 1e9
    actor.last("encode").answer(ActorDiedError())
    drain(pool)
    assert len(ray.actors) == 2 and list(pool.todo) == [0, 1]


def test_an_idle_worker_is_not_hung(ray: FakeRay) -> None:
    pool = pool_of([0, 1, 2], Meter(), workers=2)
    for actor in ray.actors:
        actor.last("ready").answer(77)
        drain(pool)
    finish(ray.actors[1])
    assert drain(pool) == [2] and not pool.todo
    for steps in range(20):
        ray.now += 5.1
        drain(pool)
        ray.actors[0].last("beat").answer(steps)
        if steps < 2:
            ray.actors[1].last("beat").answer(3)
    assert [actor.killed for actor in ray.actors] == [0, 0]


def test_a_worker_that_does_not_start_is_replaced_which_is_no_death(ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter()
    pool = pool_of([0], meter, worker_deaths=1)
    late = ray.actors[0]
    for _ in range(60):
        ray.now += 5.1
        drain(pool)
    assert late.killed == 1 and len(ray.actors) == 2 and retries(meter) == 0
    assert "worker 0: has not started within 300 s; requesting another in its place" in capsys.readouterr().out
    late.last("ready").answer(77)
    late.last("beat").answer(0)
    drain(pool)
    assert not [call for call in late.calls if call.name == "encode"], "its late answers count for nothing"
    ray.actors[1].last("ready").answer(78)
    drain(pool)
    assert ray.actors[1].last("encode").arguments == (0, None)


def test_a_worker_that_answered_once_is_not_replaced_but_watched(ray: FakeRay) -> None:
    """It loads its codec, which may take long: its heartbeat says that it lives, and its count that it does not get on."""
    pool = pool_of([0], Meter(), stall_seconds=400.0)
    actor = ray.actors[0]
    for _ in range(70):
        ray.now += 5.1
        drain(pool)
        actor.last("beat").answer(0)
    assert actor.killed == 0 and len(ray.actors) == 1
    for _ in range(12):
        ray.now += 5.1
        drain(pool)
    assert actor.killed == 1 and len(ray.actors) == 1
