"""A run folder that is an exported model, tiny and untrained, and the tokenizer that it fits."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from pretrain.model.config import ModelConfig
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig
from tokenizer.codec import save
from tokenizer.config import NetworkConfig
from tokenizer.network.network import Network
from tokenizer.quantization.codec_spec import CodecSpec

NETWORK = NetworkConfig(bits=8, width=8, multipliers=(1, 1, 2, 2), blocks=1, groups=4)
MODEL = ModelConfig(layers=1, width=16, heads=2, text_length=12)


def make(folder: Path) -> CodecSpec:
    """Write FOLDER/tokenizer and FOLDER/run; returns the tokenizer's spec."""
    torch.manual_seed(0)
    spec = save(folder / "tokenizer", NETWORK, Network(NETWORK).state_dict(), {"made": "by a test"})
    model = VideoAR(MODEL, NETWORK.bits, 256)
    (folder / "run").mkdir()
    save_file(model.state_dict(), folder / "run" / "model.safetensors")
    plain = {
        "format": 1,
        "model": MODEL.model_dump(mode="json"),
        "objective": ObjectiveConfig().model_dump(mode="json"),
        "tokenizer": spec.plain(),
        "step": 1,
        "averaged": False,
    }
    (folder / "run" / "model.json").write_text(json.dumps(plain))
    return spec
