"""The training objective: corrupt, embed, transform, loss. This is the module that DeepSpeed wraps.

In:  a `Batch`, the stage's window and frame mask.
Out: a dict of tensors; `loss` carries the gradient.

Legend: B samples, P text tokens, T latent frames, K scales, N video tokens, L = P + N, S tokens of a row that this rank holds,
C model width, d bits per token.

Every random draw is a function of `Batch.seeds`, so the result does not depend on the number of ranks. Every rank calls the same
submodules in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cluster.config import ConfigError
from pretrain.attention.attention import VARLEN, Backend, Mask, bind_mask, resolve, spare
from pretrain.attention.token_layout import Layout
from pretrain.data.batch import Batch, Host
from pretrain.model.bit_loss import token_weights
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import VideoAR
from pretrain.objective import counter_rng
from pretrain.objective.config import ObjectiveConfig
from pretrain.objective.packed_row import PackedRow
from pretrain.objective.sequence_parallel import SequenceGroup, SequenceShare
from pretrain.objective.teacher_forcing import corrected_labels, corrupts, flip_ratios, flips, shifted_codes, token_inputs
from tokenizer.quantization.bit_packing import unpack
from tokenizer.quantization.codec_spec import CodecSpec

ROW_MULTIPLE = 64
"""A row's length on a GPU is a multiple of this."""


class ObjectiveError(ConfigError):
    """A batch or a configuration that this objective cannot train on; the message names the key or the shape."""


@dataclass(frozen=True)
class Prepared:
    """What the transformer is fed and must answer, before any parameter is used."""

    layout: Layout
    text: Tensor
    """int64 (B, P), the null token where the condition was dropped."""
    text_length: Tensor
    """int64 (B)."""
    features: Tensor
    """float32 (B, N, d), or 2 d with model.previous_frame: every_scale: what each video token is fed."""
    labels: Tensor
    """bool (B, N, d): the bits that it must answer."""
    scale: Tensor
    """int64 (N): scale number of each video token."""
    mask: Mask


class Objective(nn.Module):
    """`forward(batch, window, frame_mask)` returns the loss and its parts."""

    def __init__(self, model: VideoAR, config: ObjectiveConfig, spec: CodecSpec) -> None:
        super().__init__()
        if spec.bits != model.bits:
            raise ObjectiveError(f"the model has {model.bits} bits per token, the tokenizer {spec.bits}: set tokenizer.bits")
        if config.condition_drop and not model.config.null_token:
            raise ObjectiveError("objective.condition_drop needs the null token: set model.null_token=true or condition_drop=0")
        self.model, self.config, self.spec = model, config, spec

    def forward(self, batch: Batch, window: int, frame_mask: float, group: SequenceGroup | None = None) -> dict[str, Tensor]:
        """Return `loss` (scalar), and detached `scale_loss`, `scale_accuracy` (K,), `frame_loss` (T,).

        All are sums over the samples of weight x mean, so adding them up over micro-batches and ranks gives the means
        of the global batch. `frame_loss` is scaled so that its mean over frames is the loss. With a `group` whose ranks share
        the sequences, the sums are over this rank's tokens.
        Raises ObjectiveError for a batch whose bytes do not fit its grid.
        """
        model = self.model
        ready = self.prepare(batch, window, frame_mask)
        layout, mask, device = ready.layout, ready.mask, batch.bits.device
        x_BLC = model.embed(ready.text, ready.features, ready.scale, starts=True)
        positions_BLA = model.positions(layout, ready.text_length)
        backend = "dense" if model.config.order == "tokens" else resolve(model.config.attention, device, x_BLC.dtype)
        row = self._row(batch, mask, backend)
        if row is None:
            attend = bind_mask(backend, mask, device, x_BLC.dtype)
        else:
            row, attend = row.bind(backend, mask, device, x_BLC.dtype)
            x_BLC, positions_BLA = row.join(x_BLC), row.join(positions_BLA)
        weight_BN = batch.weight.unsqueeze(1) * token_weights(layout, self.config.scale_weights, device)
        if group is None:
            hidden_BLC = model(x_BLC, positions_BLA, attend)
            hidden_BNC = hidden_BLC[:, layout.text :] if row is None else row.video(hidden_BLC)
            loss, token_loss_BN, token_accuracy_BN = model.head(hidden_BNC, ready.labels, weight_BN)
        else:
            share = SequenceShare(group, x_BLC.shape[1])
            hidden_BSC = model(share.cut(x_BLC), share.cut(positions_BLA), share.attend(attend))
            inside_BN, at = share.mine(*places(layout, weight_BN, row))
            hidden_1MC = hidden_BSC.flatten(0, 1)[at].unsqueeze(0)  # M: this rank's video tokens
            loss, *parts = model.head(hidden_1MC, ready.labels[inside_BN].unsqueeze(0), weight_BN[inside_BN].unsqueeze(0))
            token_loss_BN, token_accuracy_BN = (torch.zeros_like(weight_BN).masked_scatter(inside_BN, part) for part in parts)
        return {"loss": loss, **_parts(token_loss_BN, token_accuracy_BN, weight_BN, batch.weight, layout)}

    @torch.no_grad()
    def prepare(self, batch: Batch, window: int, frame_mask: float) -> Prepared:
        """Unpack, corrupt, re-quantize and mask `batch` on its device. No parameter is read."""
        model, config, spec = self.model, self.config, self.spec
        frames, rows, columns = batch.grid
        scales = spec.scales(rows, columns)
        if len(scales) > model.config.max_scales:
            raise ObjectiveError(
                f"grid {rows}x{columns} has {len(scales)} scales, model.max_scales is {model.config.max_scales}"
            )
        expected = frames * spec.frame_bytes(rows, columns)
        if batch.bits.shape[1] != expected:
            raise ObjectiveError(f"{batch.bits.shape[1]} bytes per sample: grid {batch.grid} takes {expected}")
        count = batch.bits.shape[0]
        bits = unpack(batch.bits.reshape(count * frames, -1), scales, spec.bits)
        by_token = model.config.order == "tokens"
        flipped = features = None
        check_order(model.config, config)
        if corrupts(config):
            ratios_BTK = flip_ratios(config, batch.seeds, frames, len(scales))
            flipped = flips(batch.seeds, ratios_BTK, scales, spec.bits)
            features = None if batch.features is None else batch.features.flatten(0, 1)
        mode = model.config.input_resize
        if by_token:
            labels, fed = bits, shifted_codes(bits, frames)
        else:
            labels, inputs, final = corrected_labels(bits, scales, flipped, features, requantize=config.requantise, mode=mode)
            every = model.config.previous_frame == "every_scale"
            fed = token_inputs(inputs, final, frames, scales, mode, previous=every)
        text, text_length = self._condition(batch)
        layout = Layout(text=text.shape[1], frames=frames, scales=scales)
        # The mask is a matter of the host, which draws the same numbers: reading the device's would make it wait.
        hidden = None
        if frame_mask > 0:
            hidden = (counter_rng.uniform(batch.known.seeds, counter_rng.MASK, (frames,)) < frame_mask).unsqueeze(1)
        return Prepared(
            layout=layout,
            text=text,
            text_length=text_length,
            features=fed,
            labels=torch.cat([item.flatten(1, 2) for item in labels], dim=1).view(count, -1, spec.bits),
            scale=layout.scale_of(batch.bits.device),
            mask=Mask(
                (layout.by_token() if by_token else layout,), self._text_length(batch.known).unsqueeze(1), window, hidden
            ),
        )

    def _row(self, batch: Batch, mask: Mask, backend: Backend) -> PackedRow | None:
        """Return how the samples share a row: as packed by the loader, and always for those with a plan, which then meet no padded text."""
        layout, device = mask.documents[0], batch.bits.device
        if backend not in VARLEN:
            return PackedRow.make(layout, batch.spans, batch.row, device) if batch.row else None
        length = (batch.row or len(batch.ids) * layout.length) + spare(backend, layout, len(batch.ids))
        return PackedRow.make(layout, tuple(mask.text_length[:, 0].tolist()), -(-length // ROW_MULTIPLE) * ROW_MULTIPLE, device)

    def _condition(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return text and lengths with the condition dropped: at random, and where there is no text."""
        text = batch.text
        if text.shape[1] == 0:
            text = text.new_zeros(text.shape[0], 1)
        length = self._text_length(Host(batch.seeds, batch.text_length))
        if not self.model.config.null_token:
            return text, length
        null = torch.zeros_like(text)
        null[:, 0].fill_(self.model.null)
        return torch.where(self._dropped(batch.seeds, batch.text_length).unsqueeze(1), null, text), length

    def _text_length(self, known: Host) -> Tensor:
        """Return the lengths of the texts that samples are conditioned on, int64 (B)."""
        length = known.text_length
        if not self.model.config.null_token:
            return length
        return torch.where(self._dropped(known.seeds, length), torch.ones_like(length), length)

    def _dropped(self, seeds_B: Tensor, text_length_B: Tensor) -> Tensor:
        """Return which samples lose their condition, bool (B): a function of their seeds, the same on all devices."""
        dropped = text_length_B == 0
        if self.config.condition_drop:
            dropped = dropped | (counter_rng.uniform(seeds_B, counter_rng.DROP, (1,))[:, 0] < self.config.condition_drop)
        return dropped


def check_order(model: ModelConfig, config: ObjectiveConfig) -> None:
    """Raise ObjectiveError for corruption of a model that predicts token by token: it has no scales whose labels could be corrected."""
    if model.order == "tokens" and corrupts(config):
        raise ObjectiveError("model.order=tokens has nothing to correct: set objective.flip_min, flip_max, flip_delta to 0")


def places(layout: Layout, like_BN: Tensor, row: PackedRow | None) -> tuple[Tensor, Tensor]:
    """Return the place of each video token in its row, and the number of that row, both int64 (B, N)."""
    if row is not None:
        found = row.to_samples[:, layout.text :]
        return found, torch.zeros_like(found)
    place_N = torch.arange(layout.text, layout.length, device=like_BN.device)
    row_B = torch.arange(like_BN.shape[0], device=like_BN.device)
    return place_N.expand(like_BN.shape), row_B.unsqueeze(1).expand(like_BN.shape)


def _parts(
    token_loss_BN: Tensor, token_accuracy_BN: Tensor, weight_BN: Tensor, sample_weight_B: Tensor, layout: Layout
) -> dict[str, Tensor]:
    """Return loss and bit accuracy by scale and loss by frame, weighted over samples."""

    def by_scale(values_BN: Tensor) -> Tensor:
        values_TS = (values_BN * sample_weight_B.unsqueeze(1)).sum(0).view(layout.frames, layout.frame)
        sizes = [end - begin for begin, end in zip(layout.offsets, layout.offsets[1:])]
        return torch.stack([part.mean() for part in values_TS.split(sizes, dim=1)])

    frame_T = (token_loss_BN * weight_BN).sum(0).view(layout.frames, layout.frame).sum(1) * layout.frames
    return {
        "scale_loss": by_scale(token_loss_BN),
        "scale_accuracy": by_scale(token_accuracy_BN),
        "frame_loss": frame_T,
    }
