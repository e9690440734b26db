"""DOC from pretrain/estimate/job_estimate.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from cluster.config import Config
from pipeline.records import Bucket
from pretrain.data.config import Mix
from pretrain.engine.config import DeepSpeedConfig, TrainConfig
from pretrain.model.block_attention import ROW_STEP, SCORES
from pretrain.model.config import ModelConfig
from pretrain.model.layers import ffn_width
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.transformer import VideoAR
from tokenizer.quantization.codec_spec import CodecSpec

PIECES = 3
"""Pieces of scores that block attention holds at once in its backward pass: weights, and the gradients of weights and scores."""


Checkpointing = Literal["none", "selective", "full"]


LIVE_PARAMETERS = 1e9
"""DeepSpeed's default of zero_optimization.stage3_max_live_parameters."""


@dataclass(frozen=True)
class Memory:
    """Bytes a rank, at the largest shape of the curriculum."""

    weights: float
    gradients: float
    optimizer: float
    """Float32 masters and both moments."""
    average: float
    gathered: float
    """Whole weights of other ranks, held while a layer runs: DeepSpeed's limit, or the model if it is smaller."""
    activations: float

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return self.weights + self.gradients + self.optimizer + self.average + self.gathered + self.activations


def parameters_of(model: ModelConfig, bits: int) -> int:
    """Return the number of parameters of VideoAR, by building it without memory."""
    with torch.device("meta"):
        built = VideoAR(model, bits, TextTokenizer.make(model).vocabulary)
    return sum(parameter.numel() for parameter in built.parameters())


def shape_of(mix: Mix, spec: CodecSpec) -> tuple[int, list[int]]:
    """Return (latent frames, tokens of each scale of a frame) of a mix."""
    bucket = Bucket.parse(mix.bucket)
    latents, rows, columns = spec.grid(mix.frames or bucket.frames, bucket.height, bucket.width)
    return latents, [r * c for r, c in spec.scales(rows, columns)]


def block_bytes(model: ModelConfig, size: int, policy: Checkpointing) -> float:
    """Return bytes a token that one block's forward pass keeps for its backward pass. size: bytes of an activation.

    Always: the block's input, two normed inputs, the three of queries, keys and values before and after norm and rotation,
    attention's output before and after its map, gate and up. Without `selective` also the product of gate and up, and where
    the element-wise parts are not compiled, silu(gate) and the float32 steps of the norms.
    """
    width, hidden = model.width, ffn_width(model)
    if policy == "selective":
        return size * (11.0 * width + 2 * hidden)
    if model.compile:
        return size * (11.0 * width + 3 * hidden)
    return size * ((15.0 if size == 4 else 22.0) * width + 4 * hidden)


def activation_bytes(model: ModelConfig, tokens: int, bits: int, *, size: int, policy: Checkpointing) -> float:
    """Return bytes that the forward pass of `tokens` positions keeps for the backward pass.

    size: bytes of an activation. policy `full` keeps the blocks' inputs; the one block that the backward pass makes again
    is counted whole. Attention weights are not in it: FlexAttention never keeps them, `blocks` those of short sequences only.
    """
    width = model.width
    block = block_bytes(model, size, policy)
    kept = model.layers * size * width + block if policy == "full" else model.layers * block
    # Final norm, gradient of the hidden states, fed features, rotation.
    head = (size if model.compile else 8) * width + size * width + size * bits + 4 * width // model.heads
    return float(tokens) * (kept + head)


def peak_bytes(
    model: ModelConfig, length: int, bits: int, *, samples: int = 1, size: int, policy: Checkpointing, blocks: bool
) -> float:
    """Return bytes at the worst moment of a step's forward and backward, weights and their gradients left out.

    That is what the forward pass keeps, and the larger of two moments in the last block's backward pass: the feed-forward's,
    whose gradients stand beside all that is kept, and attention's, when the feed-forward's share is free again. There the
    backend `blocks` (a CPU) holds the gradients of keys and values in float32, and pieces of scores. The attention weights
    that it keeps of short sequences (`pretrain.blocks.KEPT`) are not in it.
    length: positions of a sample.
    """
    tokens, width, hidden = samples * length, model.width, ffn_width(model)
    beside = 4.0 if policy == "selective" else 2.0 if model.compile else 3.0
    feed = tokens * size * (beside * hidden + width)
    freed = tokens * size * ((2.0 if policy == "selective" else 3.0) * hidden + 3 * width)
    attention = tokens * (3.0 * size + (8 if blocks else 2 * size)) * width - freed
    if blocks:
        rows, products = min(ROW_STEP, length), samples * model.heads
        attention += PIECES * min(products, max(2, SCORES // (length * rows))) * rows * length * size
    return activation_bytes(model, tokens, bits, size=size, policy=policy) + max(feed, attention)


def memory(config: Config, parameters: int, tokens: int, bits: int, ranks: int, policy: Checkpointing) -> Memory:
    """Return what a rank holds. tokens: positions of its micro-batch. policy: activation checkpointing."""
    train, deepspeed = config.get(TrainConfig), config.get(DeepSpeedConfig)
    stage = int(deepspeed.zero_optimization.get("stage", 3))
    size = 2 if train.dtype == "bfloat16" else 4
    live = min(parameters, float(deepspeed.zero_optimization.get("stage3_max_live_parameters", LIVE_PARAMETERS)))
    activations = peak_bytes(config.get(ModelConfig), tokens, bits, size=size, policy=policy, blocks=False)
    return Memory(
        weights=size * parameters / (ranks if stage == 3 else 1),
        gradients=size * parameters / (ranks if stage >= 2 else 1),
        optimizer=12 * parameters / (ranks if stage >= 1 else 1),
        average=(4 * parameters / ranks) if train.ema else 0.0,
        gathered=size * live if stage == 3 and ranks > 1 else 0.0,
        activations=activations,
    )
