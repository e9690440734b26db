"""What DeepSpeed is given: its own keys pass, ours are set here, and combinations that cannot train are refused."""

from __future__ import annotations

import pytest
import torch

from cluster.config import ConfigError
from pretrain.engine.config import DeepSpeedConfig, TrainConfig
from pretrain.engine.deepspeed_config import OURS, EngineError, check_compiler, deepspeed_config


@pytest.mark.parametrize("key", OURS)
def test_keys_that_contradict_ours_are_errors(key: str) -> None:
    section = DeepSpeedConfig.model_validate({key: {}})
    with pytest.raises(EngineError, match=f"`deepspeed.{key}` conflicts with a key of this program") as caught:
        deepspeed_config(TrainConfig(), section, 2)
    assert OURS[key] in str(caught.value)


def test_deepspeed_s_own_keys_pass_and_ours_are_filled_in() -> None:
    section = DeepSpeedConfig.model_validate(
        {"zero_optimization": {"stage": 2, "overlap_comm": True}, "wall_clock_breakdown": True}
    )
    made = deepspeed_config(TrainConfig(clip=0.5), section, 8)
    assert made["zero_optimization"] == {"stage": 2, "overlap_comm": True} and made["wall_clock_breakdown"] is True
    assert made["train_batch_size"] == 8 and made["gradient_clipping"] == 0.5
    assert made["bf16"] == {"enabled": True} and made["data_types"] == {"grad_accum_dtype": "fp32"}
    # What would make the host wait for the device, or copy gradients once more, is off unless it is asked for.
    assert made["timers"] == {"throughput": {"enabled": False}}
    asked = DeepSpeedConfig.model_validate({"zero_optimization": {"stage": 3, "contiguous_gradients": True}, "timers": {}})
    made, plain = deepspeed_config(TrainConfig(), asked, 8), deepspeed_config(TrainConfig(), DeepSpeedConfig(), 8)
    assert made["timers"] == {} and made["zero_optimization"]["contiguous_gradients"] is True
    assert plain["zero_optimization"] == {"stage": 3, "contiguous_gradients": False}
    muon = deepspeed_config(TrainConfig(optimizer="muon"), DeepSpeedConfig(), 8)
    assert muon["zero_optimization"] == {"stage": 3, "reduce_scatter": False}
    for section_, train, words in (
        ({"zero_optimization": {"stage": 4}}, TrainConfig(), "is 4; ZeRO stages are 0, 1, 2 and 3"),
        ({"zero_optimization": {"stage": 0}}, TrainConfig(), r"train\.dtype=float32"),
        ({"zero_optimization": {"stage": 0}}, TrainConfig(dtype="float32", optimizer="muon"), "stage 1, 2 or 3"),
        ({"checkpoint": {"load_universal": True}}, TrainConfig(), r"deepspeed\.checkpoint\.load_universal"),
    ):
        with pytest.raises(EngineError, match=words):
            deepspeed_config(train, DeepSpeedConfig.model_validate(section_), 2)


def test_compiling_without_a_compiler_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setenv("CXX", "no-such-compiler")
    check_compiler(False, cpu)
    check_compiler(True, torch.device("cuda"))
    with pytest.raises(EngineError, match=r"`no-such-compiler` was not found: install it, or set model\.compile=false"):
        check_compiler(True, cpu)


def test_such_a_configuration_ends_with_the_exit_code_of_a_wrong_configuration() -> None:
    assert issubclass(EngineError, ConfigError)
