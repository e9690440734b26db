from __future__ import annotations

from pipeline.records import Reject, VideoPlan


def test_a_plan_that_an_older_version_began_is_read() -> None:
    new = VideoPlan("a.mp4", "d", (), (Reject("a.mp4", "probe", "unreadable", "x"),), (b"print",))
    old = new.plain()
    old["grey"] = old.pop("prints")[0]
    assert VideoPlan.parse(old) == new
    assert VideoPlan.parse({**old, "grey": ""}).prints == ()
