"""The codec: uint8 frames in, packed bits out, and back; a whole clip at once or chunk by chunk.

In:  a tokenizer folder (tokenizer.json and tokenizer.safetensors), frames uint8 (B,T,H,W,3) or bits uint8 (B, T'*frame_bytes).
Out: `Encoded`, frames, and the states of streams. Any chunking gives what the whole clip gives.

    frames ─▶ pixels ─▶ encoder ─▶ features ─▶ quantize ─▶ pack ─▶ bits
    bits ─▶ unpack ─▶ accumulate ─▶ decoder ─▶ to_uint8 ─▶ frames
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tokenizer.codec.folder import JSON_NAME, WEIGHTS_NAME, CodecError, check_keys, digest, read_json, read_weights
from tokenizer.network.causal_conv import Stream
from tokenizer.network.convolution import onednn_computes
from tokenizer.network.network import Network, channels_last, pixels, to_uint8
from tokenizer.quantization.bit_packing import pack, unpack
from tokenizer.quantization.bsq import accumulate, quantize
from tokenizer.quantization.codec_spec import CodecSpec, SpecError


@dataclass(frozen=True)
class Encoded:
    """What encoding gives."""

    bits: Tensor
    """uint8 (B, T'*frame_bytes), in the order frame, scale, row, column, bit."""
    features: Tensor
    """Continuous features before quantization, float32 (B,T',d,h,w)."""


@dataclass(frozen=True)
class EncodeState:
    """Position of an encoding stream. Never changed in place, so one state can be continued more than once."""

    stream: Stream
    frames: int
    """Frames so far."""
    shape: tuple[int, int, int]
    """Clips, height and width."""


@dataclass(frozen=True)
class DecodeState:
    """Position of a decoding stream. Never changed in place, so one state can be continued more than once."""

    stream: Stream
    latents: int
    """Latent frames so far."""
    shape: tuple[int, int, int]
    """Clips, height and width."""


def _by_rule() -> AbstractContextManager[None]:
    """Let cuDNN choose its algorithms by shape, never by timing, and not round float32 to TF32: bits must not depend on a clock."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


class VideoCodec:
    """A loaded tokenizer. `spec` has its shapes; all returned tensors are on `device`."""

    def __init__(
        self,
        network: Network,
        spec: CodecSpec,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if dtype == torch.bfloat16 and torch.device(device).type == "cpu" and not onednn_computes(torch.device("cpu"), dtype):
            warnings.warn(
                "this CPU has no bfloat16 instructions: the codec is many times slower in it than in float32; "
                "set the dtype to float32",
                RuntimeWarning,
                stacklevel=2,
            )
        self.network = network.eval().requires_grad_(False).to(device=device, dtype=dtype)
        channels_last(self.network)
        self.spec, self.device, self.dtype = spec, torch.device(device), dtype

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> VideoCodec:
        """Read a tokenizer folder and check it against its digest. Raises CodecError naming the file and what to do."""
        folder = Path(folder)
        config, spec, _ = read_json(folder)
        state = read_weights(folder)
        found = digest(config, state, spec.scale_lists)
        if found != spec.digest:
            raise CodecError(
                f"{folder}: the weights have digest {found[:12]}, {JSON_NAME} names {spec.digest[:12]}; "
                "copy the folder again or train anew"
            )
        with torch.device("meta"):
            network = Network(config)
        check_keys(folder / WEIGHTS_NAME, network.shapes(), {name: tuple(weight.shape) for name, weight in state.items()})
        network.load_state_dict(state, assign=True)
        return cls(network, spec, device=device, dtype=dtype)

    @torch.no_grad()
    def encode(self, frames_BTHWC: Tensor) -> Encoded:
        """Encode whole clips, uint8 (B,T,H,W,3) with T = 1 + s*n. Raises CodecError for any other shape or type."""
        self._check_frames(frames_BTHWC)
        self._grid(frames_BTHWC.shape[1], *frames_BTHWC.shape[2:4])
        return self._encoded(self._encoder(self._pixels(frames_BTHWC)))

    @torch.no_grad()
    def decode(self, bits_BX: Tensor, height: int, width: int, depth: int | None = None) -> Tensor:
        """Decode the packed bits of whole clips of height x width pixels to frames, uint8 (B,T,H,W,3).

        depth: how many scales to use, the coarsest ones; None = all. Raises CodecError.
        """
        return to_uint8(self._decoder(self._quantized(bits_BX, height, width, depth)))

    @torch.no_grad()
    def encode_chunk(self, frames_BTHWC: Tensor, state: EncodeState | None, last: bool = False) -> tuple[Encoded, EncodeState]:
        """Encode the next frames of a stream, any number of them; return the latent frames that they complete, perhaps none.

        With `last` the stream must end at 1 + s*n frames, otherwise CodecError is raised.
        """
        self._check_frames(frames_BTHWC)
        batch, frames, height, width = frames_BTHWC.shape[:4]
        self._grid(1, height, width)
        if state is not None and state.shape != (batch, height, width):
            raise CodecError(
                f"chunk of {batch} clips of {height}x{width}, but the stream began with {state.shape[0]} of {state.shape[1]}x{state.shape[2]}"
            )
        seen = frames + (state.frames if state is not None else 0)
        if last:
            self._grid(seen, height, width)
        stream = Stream() if state is None else state.stream.copy()
        features = self._encoder(self._pixels(frames_BTHWC), stream)
        return self._encoded(features), EncodeState(stream, seen, (batch, height, width))

    @torch.no_grad()
    def decode_chunk(
        self, bits_BX: Tensor, height: int, width: int, state: DecodeState | None, depth: int | None = None
    ) -> tuple[Tensor, DecodeState]:
        """Decode the next latent frames of a stream: the first latent frame gives one frame, each later one s frames.

        depth: as in `decode`.
        """
        quantized = self._quantized(bits_BX, height, width, depth)
        shape = (quantized.shape[0], height, width)
        if state is not None and state.shape != shape:
            raise CodecError(
                f"chunk of {shape[0]} clips of {height}x{width}, but the stream began with {state.shape[0]} of {state.shape[1]}x{state.shape[2]}"
            )
        stream = Stream() if state is None else state.stream.copy()
        seen = quantized.shape[2] + (state.latents if state is not None else 0)
        return to_uint8(self._decoder(quantized, stream)), DecodeState(stream, seen, shape)

    def _encoder(self, x_BCTHW: Tensor, stream: Stream | None = None) -> Tensor:
        with _by_rule():
            features: Tensor = self.network.encoder(x_BCTHW, stream)
        return features

    def _decoder(self, f_BCTHW: Tensor, stream: Stream | None = None) -> Tensor:
        with _by_rule():
            x_BCTHW: Tensor = self.network.decoder(f_BCTHW, stream)
        return x_BCTHW

    def _grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        try:
            return self.spec.grid(frames, height, width)
        except SpecError as error:
            raise CodecError(str(error)) from error

    def _check_frames(self, frames: Tensor) -> None:
        if (
            not isinstance(frames, Tensor)
            or frames.dtype != torch.uint8
            or frames.ndim != 5
            or frames.shape[-1] != 3
            or 0 in frames.shape
        ):
            found = f"{frames.dtype} {tuple(frames.shape)}" if isinstance(frames, Tensor) else type(frames).__name__
            raise CodecError(f"frames must be a uint8 tensor (B,T,H,W,3) with at least one frame, found {found}")

    def _pixels(self, frames_BTHWC: Tensor) -> Tensor:
        return pixels(frames_BTHWC.to(self.device), self.dtype)

    def _encoded(self, features_BdTHW: Tensor) -> Encoded:
        batch, _, latents, rows, columns = features_BdTHW.shape
        features = features_BdTHW.float().transpose(1, 2).contiguous()
        if latents == 0:
            return Encoded(features.new_zeros((batch, 0), dtype=torch.uint8), features)
        if not bool(torch.isfinite(features).all()):
            raise CodecError(
                "the encoder returned a feature that is not finite; these weights cannot be used, or not in this dtype"
            )
        bits, _ = quantize(features.flatten(0, 1), self.spec.scales(rows, columns))
        return Encoded(pack(bits).reshape(batch, -1), features)

    def _quantized(self, bits_BX: Tensor, height: int, width: int, depth: int | None = None) -> Tensor:
        _, rows, columns = self._grid(1, height, width)
        size = self.spec.frame_bytes(rows, columns)
        if (
            not isinstance(bits_BX, Tensor)
            or bits_BX.dtype != torch.uint8
            or bits_BX.ndim != 2
            or bits_BX.shape[1] % size
            or 0 in bits_BX.shape
        ):
            found = f"{bits_BX.dtype} {tuple(bits_BX.shape)}" if isinstance(bits_BX, Tensor) else type(bits_BX).__name__
            raise CodecError(f"bits must be a uint8 tensor (B, n*{size}) for {height}x{width} pixels, found {found}")
        scales = self.spec.scales(rows, columns)
        maps = unpack(bits_BX.to(self.device).reshape(-1, size), scales, self.spec.bits)
        if depth is not None and not 0 < depth <= len(scales):
            raise CodecError(f"depth {depth}: {height}x{width} pixels have {len(scales)} scales, and at least one is needed")
        features: Tensor = accumulate(maps[:depth], scales).unflatten(0, (bits_BX.shape[0], -1)).transpose(1, 2)
        return features.to(self.dtype).contiguous(memory_format=torch.channels_last_3d)
