"""The codec: streaming equals the whole, bad input is named."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenizer.codec import CodecError, Encoded, VideoCodec, save
from tokenizer.network.causal_conv import Stream
from tokenizer.network.network import Network, to_uint8
from tokenizer.quantization.bsq import codes, resize_area, resize_linear


def codec_of(network: Network, folder: Path) -> VideoCodec:
    save(folder, network.config, network.state_dict(), {"test": True})
    return VideoCodec.load(folder)


@pytest.fixture(scope="module")
def codecs(small_f8: Network, small_f16: Network, tmp_path_factory: pytest.TempPathFactory) -> dict[str, VideoCodec]:
    folder = tmp_path_factory.mktemp("codecs")
    return {"f8": codec_of(small_f8, folder / "f8"), "f16": codec_of(small_f16, folder / "f16")}


def clip(codec: VideoCodec, frames: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Smooth moving noise: neighbouring frames are alike, as in video."""
    side = 2 * codec.spec.spatial_stride
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(batch, frames, side, side, 3, generator=generator).cumsum(1)
    return (128 + 20 * steps).clamp(0, 255).to(torch.uint8)


def chunks(total: int, cuts: list[int]) -> list[tuple[int, int]]:
    edges = sorted({0, total, *(cut % total for cut in cuts)})
    return list(pairwise(edges))


def decided(features: torch.Tensor, codec: VideoCodec) -> torch.Tensor:
    """Which latent frames have no value so near 0 that rounding could turn its bit, bool (B*T',)."""
    frames = features.flatten(0, 1)
    listed = codec.spec.scales(*frames.shape[2:])
    residual, sure = frames, torch.ones(len(frames), dtype=torch.bool)
    for scale in listed:
        z = torch.nn.functional.normalize(resize_area(residual, scale), dim=1)
        sure &= (z.abs() >= 1e-5).flatten(1).all(1)
        residual = residual - resize_linear(codes((z > 0).permute(0, 2, 3, 1)), listed[-1])
    return sure


@pytest.fixture(scope="module")
def wholes(codecs: dict[str, VideoCodec]) -> dict[str, tuple[torch.Tensor, Encoded, torch.Tensor]]:
    made = {}
    for name, codec in codecs.items():
        frames = clip(codec, 129)
        encoded = codec.encode(frames)
        side = frames.shape[2]
        quantized = codec._quantized(encoded.bits, side, side)
        with torch.no_grad():
            made[name] = (frames, encoded, codec.network.decoder(quantized))
    return made


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, 128), max_size=8), name=st.sampled_from(["f8", "f16"]))
def test_any_chunking_of_129_frames_encodes_as_the_whole(
    codecs: dict[str, VideoCodec], wholes: dict[str, tuple[torch.Tensor, Encoded, torch.Tensor]], cuts: list[int], name: str
) -> None:
    codec, (frames, whole, _) = codecs[name], wholes[name]
    state = None
    parts: list[Encoded] = []
    for begin, end in chunks(129, cuts):
        part, state = codec.encode_chunk(frames[:, begin:end], state, last=end == 129)
        parts.append(part)
    features = torch.cat([part.features for part in parts], dim=1)
    assert features.shape == whole.features.shape == (1, 33, codec.spec.bits, 2, 2)
    assert (features - whole.features).abs().max() < 1e-4
    sure = decided(whole.features, codec)
    assert sure.sum() > 25, "most of the 33 frames are compared"
    bits = torch.cat([part.bits for part in parts], dim=1).view(33, -1)
    assert torch.equal(bits[sure], whole.bits.view(33, -1)[sure])


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, 32), max_size=6), name=st.sampled_from(["f8", "f16"]))
def test_any_chunking_of_33_latents_decodes_as_the_whole(
    codecs: dict[str, VideoCodec], wholes: dict[str, tuple[torch.Tensor, Encoded, torch.Tensor]], cuts: list[int], name: str
) -> None:
    codec, (frames, whole, want) = codecs[name], wholes[name]
    side, size = frames.shape[2], whole.bits.shape[1] // 33
    state = None
    shown = []
    exact = Stream()
    parts = []
    for begin, end in chunks(33, cuts):
        bits = whole.bits[:, begin * size : end * size]
        part, state = codec.decode_chunk(bits, side, side, state)
        shown.append(part)
        with torch.no_grad():
            parts.append(codec.network.decoder(codec._quantized(bits, side, side), exact))
    assert (torch.cat(parts, dim=2) - want).abs().max() < 1e-4
    joined = torch.cat(shown, dim=1)
    assert joined.shape == frames.shape
    assert (joined.int() - to_uint8(want).int()).abs().max() <= 1


def test_a_stream_can_be_continued_twice(codecs: dict[str, VideoCodec]) -> None:
    codec = codecs["f8"]
    frames = clip(codec, 9)
    _, state = codec.encode_chunk(frames[:, :5], None)
    first, _ = codec.encode_chunk(frames[:, 5:], state, last=True)
    second, _ = codec.encode_chunk(frames[:, 5:], state, last=True)
    assert torch.equal(first.bits, second.bits)
    assert torch.equal(first.features, second.features)


def test_a_batch_gives_what_its_clips_give(codecs: dict[str, VideoCodec]) -> None:
    codec = codecs["f8"]
    frames = clip(codec, 5, batch=3)
    whole = codec.encode(frames)
    single = torch.cat([codec.encode(frames[i : i + 1]).features for i in range(3)])
    assert (whole.features - single).abs().max() < 1e-4
    side = frames.shape[2]
    assert codec.decode(whole.bits, side, side).shape == frames.shape


def test_bfloat16_runs_and_stays_near(codecs: dict[str, VideoCodec], small_f8: Network, tmp_path: Path) -> None:
    save(tmp_path / "t", small_f8.config, small_f8.state_dict(), {})
    half = VideoCodec.load(tmp_path / "t", dtype=torch.bfloat16)
    frames = clip(half, 5)
    exact, rounded = codecs["f8"].encode(frames).features, half.encode(frames).features
    assert rounded.dtype == torch.float32
    assert (exact - rounded).norm() / exact.norm() < 0.1
    assert half.decode(half.encode(frames).bits, 16, 16).dtype == torch.uint8


def test_bfloat16_on_a_cpu_without_it_works_and_warns(
    small_f8: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: set[torch.dtype] = set()
    onednn = torch.ops.aten.mkldnn_convolution

    def watched(x: torch.Tensor, *given: object) -> torch.Tensor:
        computed.add(x.dtype)
        return onednn(x, *given)

    save(tmp_path / "t", small_f8.config, small_f8.state_dict(), {})
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.ops.aten, "mkldnn_convolution", watched)
    with pytest.warns(RuntimeWarning, match="no bfloat16 instructions.*set the dtype to float32"):
        half = VideoCodec.load(tmp_path / "t", dtype=torch.bfloat16)
    frames = clip(half, 5)
    bits = half.encode(frames).bits
    assert half.decode(bits, 16, 16).shape == frames.shape
    assert computed == {torch.float32}, "oneDNN has no instructions for another type"


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(1, 4, 16, 16, 3, dtype=torch.uint8), "1 \\+ 4n frames"),
        (torch.zeros(1, 5, 20, 16, 3, dtype=torch.uint8), "multiples of 8"),
        (torch.zeros(1, 5, 16, 17, 3, dtype=torch.uint8), "multiples of 8"),
        (torch.full((1, 5, 16, 16, 3), float("nan")), "uint8"),
        (torch.zeros(5, 16, 16, 3, dtype=torch.uint8), "uint8 tensor"),
        (torch.zeros(1, 0, 16, 16, 3, dtype=torch.uint8), "at least one frame"),
    ],
)
def test_bad_frames_are_named(codecs: dict[str, VideoCodec], frames: torch.Tensor, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        codecs["f8"].encode(frames)


def test_bad_streams_and_bits_are_named(codecs: dict[str, VideoCodec]) -> None:
    codec = codecs["f8"]
    _, state = codec.encode_chunk(clip(codec, 3), None)
    with pytest.raises(CodecError, match="1 \\+ 4n frames"):
        codec.encode_chunk(clip(codec, 1), state, last=True)
    with pytest.raises(CodecError, match="stream began with"):
        codec.encode_chunk(torch.zeros(2, 1, 16, 16, 3, dtype=torch.uint8), state)
    with pytest.raises(CodecError, match=r"n\*5"):
        codec.decode(torch.zeros(1, 7, dtype=torch.uint8), 16, 16)


def test_coarse_scales_alone_are_decoded_as_their_sum(codecs: dict[str, VideoCodec]) -> None:
    codec = codecs["f16"]
    frames = clip(codec, 5, batch=2)
    encoded, side = codec.encode(frames), frames.shape[2]
    listed = codec.spec.scales(2, 2)
    assert torch.equal(codec.decode(encoded.bits, side, side, len(listed)), codec.decode(encoded.bits, side, side))
    features = encoded.features.flatten(0, 1)
    coarse = resize_linear(codes((resize_area(features, listed[0]) > 0).permute(0, 2, 3, 1)), listed[-1])
    with torch.no_grad():
        wanted = codec.network.decoder(coarse.unflatten(0, (2, -1)).transpose(1, 2))
    shown = codec.decode(encoded.bits, side, side, 1).permute(0, 4, 1, 2, 3) / 127.5 - 1
    assert (shown - wanted.clamp(-1, 1)).abs().max() < 1 / 127
    for depth in (0, len(listed) + 1):
        with pytest.raises(CodecError, match=f"depth {depth}: 32x32 pixels have 2 scales"):
            codec.decode(encoded.bits, side, side, depth)


def test_one_frame_works(codecs: dict[str, VideoCodec]) -> None:
    codec = codecs["f16"]
    encoded = codec.encode(clip(codec, 1))
    assert encoded.features.shape[1] == 1
    assert codec.decode(encoded.bits, 32, 32).shape == (1, 1, 32, 32, 3)
