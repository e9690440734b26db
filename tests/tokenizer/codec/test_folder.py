"""Tokenizer folders: saved and read back, digest, damage named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tokenizer.codec import CodecError, VideoCodec, digest, read_json, save
from tokenizer.config import NetworkConfig
from tokenizer.network.network import Network


def test_saved_folder_loads_with_the_same_digest(small_f8: Network, tmp_path: Path) -> None:
    lists = {"2x2": ((1, 1), (2, 2))}
    spec = save(tmp_path / "t", small_f8.config, small_f8.state_dict(), {"steps": 3}, lists)
    codec = VideoCodec.load(tmp_path / "t")
    assert codec.spec == spec
    assert codec.spec.scales(2, 2) == ((1, 1), (2, 2))
    assert spec.digest == digest(small_f8.config, small_f8.state_dict(), lists)
    assert spec.digest != digest(small_f8.config, small_f8.state_dict())
    again = save(tmp_path / "t", small_f8.config, small_f8.state_dict(), {"steps": 4})
    assert VideoCodec.load(tmp_path / "t").spec == again
    assert [path.name for path in tmp_path.iterdir()] == ["t"], "no temporary folder stays"


def test_digest_changes_with_one_weight(small_f8: Network) -> None:
    state = {name: weight.clone() for name, weight in small_f8.state_dict().items()}
    before = digest(small_f8.config, state)
    state["decoder.conv_out.conv.bias"][0] += 1e-6
    assert digest(small_f8.config, state) != before


def test_damaged_folders_are_named(small_f8: Network, tmp_path: Path) -> None:
    with pytest.raises(CodecError, match="no tokenizer there"):
        VideoCodec.load(tmp_path / "absent")
    folder = tmp_path / "t"
    save(folder, small_f8.config, small_f8.state_dict(), {})
    weights = folder / "tokenizer.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[: len(good) // 2])
    with pytest.raises(CodecError, match=r"tokenizer\.safetensors.*damaged"):
        VideoCodec.load(folder)
    weights.write_bytes(good[:-4] + b"\0\0\x80\x3f")
    with pytest.raises(CodecError, match="digest"):
        VideoCodec.load(folder)
    weights.unlink()
    with pytest.raises(CodecError, match="missing"):
        VideoCodec.load(folder)
    record = json.loads((folder / "tokenizer.json").read_text())
    del record["spec"]["bits"]
    (folder / "tokenizer.json").write_text(json.dumps(record))
    with pytest.raises(CodecError, match="no tokenizer description"):
        VideoCodec.load(folder)
    for change, message in (
        ({"format": 9}, "format 9; this program reads format 1"),
        ({"spec": {**record["spec"], "bits": "many"}}, "no tokenizer description"),
        ({"spec": {**record["spec"], "bits": 8, "scale_lists": {"wide": []}}}, "scale list `wide`"),
    ):
        (folder / "tokenizer.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(CodecError, match=message):
            read_json(folder)


def test_save_refuses_foreign_and_broken_weights(small_f8: Network, tmp_path: Path) -> None:
    state = dict(small_f8.state_dict())
    with pytest.raises(CodecError, match="foreign"):
        save(tmp_path / "t", small_f8.config, {**state, "encoder.extra": torch.zeros(1)}, {})
    with pytest.raises(CodecError, match="has shape"):
        save(tmp_path / "t", NetworkConfig(**{**small_f8.config.model_dump(), "bits": 16}), state, {})
    state["decoder.conv_out.conv.bias"] = torch.full((3,), float("nan"))
    with pytest.raises(CodecError, match="not finite"):
        save(tmp_path / "t", small_f8.config, state, {})
    assert not list(tmp_path.iterdir())
