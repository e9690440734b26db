"""Import of the public format: what loads, how kernels inflate, what a change of bits keeps, what is refused by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from tokenizer.codec import VideoCodec
from tokenizer.codec.image_import import ImportFailure, change_bits, import_public, inflate
from tokenizer.config import NetworkConfig
from tokenizer.network.network import Network
from tokenizer.quantization.bit_packing import unpack
from tokenizer.quantization.bsq import quantize
from tokenizer.quantization.scale_schedule import scales


def public_state(bits: int = 16, width: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict in the public 2D format: our image network's, its temporal axis taken away."""
    config = NetworkConfig(bits=bits, width=width, multipliers=(1, 2, 4, 4, 4), temporal_stride=1, kernel_t=1)
    network = Network(config)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, weight in network.state_dict().items():
        drawn = torch.randn(weight.shape, generator=generator)
        scaled = drawn / weight[0].numel() ** 0.5 if weight.ndim == 5 else weight + 0.1 * drawn
        state[name] = scaled.squeeze(2) if weight.ndim == 5 else scaled
    return state


def write(folder: Path, content: object) -> Path:
    path = folder / "public.pth"
    torch.save(content, path)
    return path


def test_the_golden_file_imports_and_codes_as_the_public_network(
    shared: Path, golden: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    spec = import_public(shared / "golden" / "infinity2d_d16.pth", tmp_path / "t")
    assert (spec.bits, spec.spatial_stride, spec.temporal_stride) == (16, 16, 4)
    codec = VideoCodec.load(tmp_path / "t")
    assert codec.network.config.width == 32
    encoded = codec.encode(golden["image_u8"].permute(0, 2, 3, 1)[:, None])
    assert (encoded.features[:, 0] - golden["feature"]).abs().max() < 1e-4
    want = torch.cat([golden[f"bits_{k}"].flatten(1) for k in range(6)], dim=1).bool()
    found = torch.cat([item.flatten(1) for item in unpack(encoded.bits, scales(8, 8), 16)], dim=1)
    assert (found != want).double().mean() < 1e-3


@pytest.mark.parametrize("bits", [16, 24, 32, 64])
@pytest.mark.parametrize("wrap", ["plain", "vae", "both"])
def test_every_public_d_imports_with_and_without_average(bits: int, wrap: str, tmp_path: Path) -> None:
    state, average = public_state(bits), public_state(bits, seed=1)
    extra = {**state, "quantize.lfq.mask": torch.zeros(bits)}
    content = {"plain": extra, "vae": {"vae": extra}, "both": {"vae": extra, "ema": average}}[wrap]
    spec = import_public(write(tmp_path, content), tmp_path / "t")
    assert spec.bits == bits
    loaded = VideoCodec.load(tmp_path / "t").network.state_dict()["decoder.conv_in.conv.weight"][:, :, -1]
    assert torch.equal(loaded, (average if wrap == "both" else state)["decoder.conv_in.conv.weight"])
    if wrap == "both":
        import_public(tmp_path / "public.pth", tmp_path / "t", ema=False)
        loaded = VideoCodec.load(tmp_path / "t").network.state_dict()["decoder.conv_in.conv.weight"][:, :, -1]
        assert torch.equal(loaded, state["decoder.conv_in.conv.weight"])
    else:
        with pytest.raises(ImportFailure, match="no moving average"):
            import_public(tmp_path / "public.pth", tmp_path / "u", ema=True)


def test_growing_to_48_bits_keeps_every_public_bit_and_the_picture(tmp_path: Path) -> None:
    path = write(tmp_path, public_state(32))
    import_public(path, tmp_path / "a")
    import_public(path, tmp_path / "b", bits=48)
    small, large = VideoCodec.load(tmp_path / "a"), VideoCodec.load(tmp_path / "b")
    frames = torch.randint(0, 256, (2, 1, 64, 64, 3), dtype=torch.uint8)
    few, many = small.encode(frames).features[:, 0], large.encode(frames).features[:, 0]
    listed = scales(4, 4)
    bits_few, sum_few = quantize(few, listed)
    bits_many, sum_many = quantize(many, listed)
    for a, b in zip(bits_few, bits_many):
        assert (a != b[..., :32]).double().mean() < 1e-3
        new = b[..., 32:].double().mean((0, 1, 2))
        assert 0.05 < new.mean() < 0.95, "the new bits take both values"
    assert torch.allclose(sum_few, sum_many[:, :32] * (48 / 32) ** 0.5, atol=1e-5)
    with torch.no_grad():
        a = small.network.decoder(sum_few[:, :, None])
        b = large.network.decoder(sum_many[:, :, None])
    assert (a - b).abs().max() < 1e-4


def test_shrinking_keeps_the_channels_that_the_decoder_listens_to() -> None:
    state = public_state(64)
    state["decoder.conv_in.conv.weight"][:, 10:26] *= 0.01
    made = change_bits(state, 48, seed=0)
    rows = state["encoder.conv_out.conv.weight"][[i for i in range(64) if not 10 <= i < 26]]
    assert torch.allclose(made["encoder.conv_out.conv.weight"], rows * (64 / 48) ** 0.5)
    assert made["decoder.conv_in.conv.weight"].shape[1] == 48


def test_what_is_no_public_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    state = public_state()
    with pytest.raises(ImportFailure, match="no such file"):
        import_public(tmp_path / "absent.pth", tmp_path / "t")
    with pytest.raises(ImportFailure, match="foreign keys: `transformer"):
        import_public(write(tmp_path, {**state, "transformer.weight": torch.zeros(1)}), tmp_path / "t")
    lacking = {name: weight for name, weight in state.items() if name != "decoder.norm_out.norm.bias"}
    with pytest.raises(ImportFailure, match=r"missing `decoder\.norm_out\.norm\.bias`"):
        import_public(write(tmp_path, lacking), tmp_path / "t")
    with pytest.raises(ImportFailure, match=r"lacks `encoder\.conv_out\.conv\.weight`"):
        import_public(write(tmp_path, {k: v for k, v in state.items() if "encoder.conv_out" not in k}), tmp_path / "t")
    with pytest.raises(ImportFailure, match="is no tensor"):
        import_public(write(tmp_path, {"vae": {"encoder.x": 3}}), tmp_path / "t")
    path = write(tmp_path, state)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ImportFailure, match=r"cannot be read|no PyTorch file"):
        import_public(path, tmp_path / "t")
    with path.open("wb") as file:
        pickle.dump({"a": pathlib_object()}, file)
    with pytest.raises(ImportFailure, match="more than tensors"):
        import_public(path, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def pathlib_object() -> object:
    return Path("x")


def test_bits_that_fill_no_bytes_are_refused_with_the_mend(tmp_path: Path) -> None:
    state = public_state(16)
    for name, axis in (
        ("encoder.conv_out.conv.weight", 0),
        ("encoder.conv_out.conv.bias", 0),
        ("decoder.conv_in.conv.weight", 1),
    ):
        state[name] = torch.cat((state[name], state[name].narrow(axis, 0, 2)), dim=axis)
    path = write(tmp_path, state)
    with pytest.raises(ImportFailure, match="divisible by 8"):
        import_public(path, tmp_path / "t")
    assert import_public(path, tmp_path / "t", bits=24).bits == 24


SHAPES: dict[str, tuple[int, ...]] = {"a.weight": (2, 3, 3, 3, 3), "a.bias": (2,), "b.weight": (2, 2, 1, 1, 1)}


def flat_weights() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.randn(2, 3, 3, 3), "a.bias": torch.randn(2), "b.weight": torch.randn(2, 2, 1, 1)}


def test_inflation_gives_the_last_slice_the_weights_and_older_ones_are_zero() -> None:
    flat = flat_weights()
    full = inflate(flat, SHAPES)
    assert torch.equal(full["a.weight"][:, :, -1], flat["a.weight"])
    assert full["a.weight"][:, :, :-1].abs().max() == 0
    assert torch.equal(full["b.weight"][:, :, 0], flat["b.weight"])
    assert torch.equal(full["a.bias"], flat["a.bias"])


def test_random_older_slices_repeat_with_the_seed() -> None:
    flat = flat_weights()
    one, two = inflate(flat, SHAPES, older="random", seed=1), inflate(flat, SHAPES, older="random", seed=1)
    assert torch.equal(one["a.weight"], two["a.weight"])
    assert one["a.weight"][:, :, 0].std() > 0
    assert torch.equal(one["a.weight"][:, :, -1], flat["a.weight"])


@pytest.mark.parametrize("change", ["missing", "foreign", "shape"])
def test_weights_that_do_not_inflate_are_named(change: str) -> None:
    flat = flat_weights()
    if change == "missing":
        del flat["a.bias"]
    elif change == "foreign":
        flat["c.weight"] = torch.zeros(1)
    else:
        flat["a.weight"] = torch.zeros(2, 3, 5, 5)
    with pytest.raises(ImportFailure, match={"missing": "a.bias", "foreign": "c.weight", "shape": "does not inflate"}[change]):
        inflate(flat, SHAPES)
