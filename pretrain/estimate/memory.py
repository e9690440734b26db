"""Bytes that a rank needs: what ZeRO keeps of parameters, gradients and optimizer, and what a micro-batch adds.

In:  the model's shape, the tokens of a micro-batch, type, ZeRO stage, activation checkpointing.
Out: a `Memory` of plain numbers. Nothing of the size of the model is allocated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from cluster.config import Config
from pipeline.records import Bucket
from pretrain.data.config import Mix
from pretrain.engine.config import DeepSpeedConfig, TrainConfig
from pretrain.model.block_attention import MAX_QUERIES, MAX_SCORES
from pretrain.model.config import ModelConfig
from pretrain.model.layers import ffn_width
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.token_layout import Layout
from pretrain.model.transformer import VideoAR
from tokenizer.quantization.codec_spec import CodecSpec

Checkpointing = Literal["none", "selective", "full"]
"""Activation checkpointing: what the backward pass recomputes."""
SCORE_TENSORS = 3
"""Tensors of scores that block attention's backward pass holds at once: weights, and the gradients of weights and scores."""
LIVE_PARAMETERS = 1e9
"""DeepSpeed's default of zero_optimization.stage3_max_live_parameters."""


@dataclass(frozen=True)
class Memory:
    """Bytes per rank, at the largest shape of the curriculum."""

    weights: float
    gradients: float
    optimizer: float
    """Float32 master weights and both moments."""
    average: float
    """Moving average of the weights (train.ema)."""
    gathered: float
    """Weights gathered from other ranks while a layer runs: up to DeepSpeed's limit, or the model if it is smaller."""
    activations: float

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return self.weights + self.gradients + self.optimizer + self.average + self.gathered + self.activations


def parameters_of(model: ModelConfig, bits: int) -> int:
    """Return the number of parameters of VideoAR, by building it on the meta device."""
    with torch.device("meta"):
        built = VideoAR(model, bits, TextTokenizer.make(model).vocabulary)
    return sum(parameter.numel() for parameter in built.parameters())


def layout_of(mix: Mix, spec: CodecSpec, text: int) -> Layout:
    """Return the tokens of one sample of a mix with `text` text tokens."""
    bucket = Bucket.parse(mix.shape)
    latents, rows, columns = spec.grid(bucket.frames, bucket.height, bucket.width)
    return Layout(text, latents, spec.scales(rows, columns))


def block_bytes(model: ModelConfig, size: int, policy: Checkpointing) -> float:
    """Return bytes per token that one block's forward pass keeps for its backward pass. size: bytes of an activation.

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

    size: bytes of an activation. The policy `full` keeps the blocks' inputs, and all of the one block that the backward pass
    recomputes. Attention weights are not included: FlexAttention never keeps them, `blocks` those of short sequences only.
    """
    width = model.width
    block = block_bytes(model, size, policy)
    kept = model.layers * size * width + block if policy == "full" else model.layers * block
    # Final norm, gradient of the hidden states, input features, rotation.
    head = (size if model.compile else 8) * width + size * width + size * bits + 4 * width // model.heads
    return float(tokens) * (kept + head)


def peak_bytes(
    model: ModelConfig, length: int, bits: int, *, samples: int = 1, size: int, policy: Checkpointing, blocks: bool
) -> float:
    """Return bytes at the peak of a step's forward and backward, without weights and their gradients.

    That is what the forward pass keeps, and the larger of two moments in the last block's backward pass: that of the
    feed-forward, whose gradients come on top of all that is kept, and that of attention, when the feed-forward's share is free
    again. There the backend `blocks` (a CPU) holds float32 gradients of keys and values, and tensors of scores. The attention
    weights that it keeps of short sequences (`block_attention.MAX_KEPT_WEIGHTS`) are not included.
    length: positions of a sample.
    """
    tokens, width, hidden = samples * length, model.width, ffn_width(model)
    gradients = 4.0 if policy == "selective" else 2.0 if model.compile else 3.0
    feed = tokens * size * (gradients * hidden + width)
    freed = tokens * size * ((2.0 if policy == "selective" else 3.0) * hidden + 3 * width)
    attention = tokens * (3.0 * size + (8 if blocks else 2 * size)) * width - freed
    if blocks:
        rows, products = min(MAX_QUERIES, length), samples * model.heads
        attention += SCORE_TENSORS * min(products, max(2, MAX_SCORES // (length * rows))) * rows * length * size
    return activation_bytes(model, tokens, bits, size=size, policy=policy) + max(feed, attention)


def memory(config: Config, parameters: int, tokens: int, bits: int, ranks: int, policy: Checkpointing) -> Memory:
    """Return what a rank holds. tokens: positions of its micro-batch."""
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
