"""A training state for the tests of files."""

from __future__ import annotations

from pretrain.checkpoint.train_state import TrainState

STATE = TrainState(
    step=4,
    stage=0,
    stage_ends=False,
    tokens=100,
    world=2,
    zero_stage=3,
    optimizer="adamw",
    seed=1,
    data_digest="a" * 64,
    tokenizer={"digest": "d" * 64},
    model={"layers": 2, "width": 64},
)
