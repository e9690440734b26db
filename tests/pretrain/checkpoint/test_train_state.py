"""Training states: written and read."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cluster.config import ConfigError
from pretrain.checkpoint.train_state import ResumeError, TrainState
from tests.helpers.made_state import STATE


def test_state_round_trips_and_refuses_another_format(tmp_path: Path) -> None:
    state = replace(STATE, guard={"losses": [0.1, 1 / 3]})
    state.write(tmp_path / "state.json")
    assert TrainState.read(tmp_path / "state.json") == state
    (tmp_path / "state.json").write_text('{"step": 1}')
    with pytest.raises(ResumeError, match=r"state\.json: no readable training state"):
        TrainState.read(tmp_path / "state.json")


def test_a_state_of_an_older_version_is_read(tmp_path: Path) -> None:
    """It has a digest that is no longer used, and lacks what came later."""
    plain = {name: value for name, value in asdict(STATE).items() if name != "contents"} | {"past": "p"}
    (tmp_path / "state.json").write_text(json.dumps(plain))
    assert TrainState.read(tmp_path / "state.json") == STATE


def test_a_refusal_is_an_error_of_the_configuration() -> None:
    assert issubclass(ResumeError, ConfigError)
