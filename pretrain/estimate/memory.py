"""Bytes that a rank needs: what ZeRO keeps of parameters, gradients and optimizer, and what a step adds; host memory of checkpoints.

In:  the model's shape, the tokens of a micro-batch, type, ZeRO stage, activation checkpointing.
Out: a `Memory` of plain numbers. Nothing of the size of the model is allocated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from cluster.config import Config
from pipeline.records import Bucket
from pretrain.attention.block_attention import MAX_QUERIES, MAX_SCORES
from pretrain.attention.token_layout import Layout
from pretrain.data.config import Mix
from pretrain.engine.config import DeepSpeedConfig, TrainConfig
from pretrain.model.config import ModelConfig
from pretrain.model.layers import ffn_width
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.transformer import VideoAR
from tokenizer.quantization.codec_spec import CodecSpec

Checkpointing = Literal["none", "selective", "full"]
"""Activation checkpointing: what the backward pass recomputes."""
SCORE_TENSORS = 3
"""Tensors of scores that block attention's backward pass holds at once: weights, and the gradients of weights and scores."""
LIVE_PARAMETERS = 1e9
"""DeepSpeed's default of zero_optimization.stage3_max_live_parameters."""
REDUCE_BUCKET = 5e8
"""DeepSpeed's default of zero_optimization.reduce_bucket_size, in elements."""
SUB_GROUP = 1e9
"""DeepSpeed's default of zero_optimization.sub_group_size: elements that the optimizer updates at once."""
MULTIPROCESSORS = 132
"""Of an H100 or H200: FlashAttention divides a sequence's backward pass among them, with a sum of its own for each part."""


@dataclass(frozen=True)
class Memory:
    """Bytes per rank, at the largest shape of the curriculum.

    Weights, gradients, optimizer, average and buckets are there all the time. Of the rest, the largest of three moments counts: the
    beginning of the backward pass (gathered + activations), the reduction of a full bucket, and the update.
    """

    weights: float
    gradients: float
    """Accumulated in float32, whatever the type of the weights."""
    optimizer: float
    """Float32 master weights and both moments."""
    average: float
    """Moving average of the weights (train.ema)."""
    buckets: float
    """DeepSpeed's buffer of gradients that are reduced together: all of zero_optimization.reduce_bucket_size, whatever the model."""
    gathered: float
    """Weights gathered from other ranks: up to DeepSpeed's limit and one block more, or the model if it is smaller."""
    activations: float
    reduction: float
    """What is left of gathered weights and activations when the first bucket is full, and copies of that bucket."""
    update: float
    """Copies of gradients that the optimizer step makes when the activations are gone."""

    @property
    def resident(self) -> float:
        """Bytes that are there all the time."""
        return self.weights + self.gradients + self.optimizer + self.average + self.buckets

    @property
    def total(self) -> float:
        """Bytes at the largest of the three moments."""
        return self.resident + max(self.gathered + self.activations, self.reduction, self.update)


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


def block_bytes(model: ModelConfig, size: int, policy: Checkpointing, *, compiled: bool) -> float:
    """Return bytes per token that one block's forward pass keeps for its backward pass. size: bytes of an activation.

    Always: the block's input, two normed inputs, the three of queries, keys and values before and after norm and rotation,
    attention's output before and after its map, gate and up. Without `selective` also the product of gate and up, and where the
    block is not compiled, silu(gate) and the float32 steps of the norms. A compiled block keeps that product with `selective` too:
    the compiler's partitioner decides, and does not recompute what a matrix product reads.
    """
    width, hidden = model.width, ffn_width(model)
    if compiled:
        return size * (11.0 * width + 3 * hidden)
    if policy == "selective":
        return size * (11.0 * width + 2 * hidden)
    return size * ((15.0 if size == 4 else 22.0) * width + 4 * hidden)


def activation_bytes(
    model: ModelConfig, tokens: int, bits: int, *, size: int, policy: Checkpointing, compiled: bool = False
) -> float:
    """Return bytes that the forward pass of `tokens` positions keeps for the backward pass.

    size: bytes of an activation. The policy `full` keeps the blocks' inputs, and all of the one block that the backward pass
    recomputes. Attention weights are not included: FlashAttention never keeps them, `blocks` those of short sequences only.
    """
    width = model.width
    block = block_bytes(model, size, policy, compiled=compiled)
    kept = model.layers * size * width + block if policy == "full" else model.layers * block
    # Final norm (not compiled), gradient of the hidden states, input features, rotation.
    head = 8 * width + size * width + size * bits + 4 * width // model.heads
    return float(tokens) * (kept + head)


def peak_bytes(
    model: ModelConfig, length: int, bits: int, *, samples: int = 1, size: int, policy: Checkpointing, blocks: bool
) -> float:
    """Return bytes at the peak of a step's forward and backward, without weights and their gradients.

    That is what the forward pass keeps, and the larger of two moments in the last block's backward pass: that of the
    feed-forward, whose gradients come on top of all that is kept, and that of attention, when the feed-forward's share is free
    again. There the backend `blocks` (a CPU) holds float32 gradients of keys and values, and tensors of scores; FlashAttention holds
    float32 sums of the queries' gradients. The attention weights that `blocks` keeps of short sequences
    (`block_attention.MAX_KEPT_WEIGHTS`) are not included.
    length: positions of a sample.
    """
    tokens, width, hidden = samples * length, model.width, ffn_width(model)
    compiled = model.compile is True or (model.compile == "auto" and not blocks)
    gradients = 4.0 if policy == "selective" and not compiled else 3.0
    feed = tokens * size * (gradients * hidden + width)
    freed = tokens * size * ((2.0 if policy == "selective" and not compiled else 3.0) * hidden + 3 * width)
    parts = math.ceil(MULTIPROCESSORS / (samples * model.heads))
    attention = tokens * (3.0 * size + (8 if blocks else 2 * size + 4 * parts)) * width - freed
    if blocks:
        rows, products = min(MAX_QUERIES, length), samples * model.heads
        attention += SCORE_TENSORS * min(products, max(2, MAX_SCORES // (length * rows))) * rows * length * size
    kept = activation_bytes(model, tokens, bits, size=size, policy=policy, compiled=compiled)
    return kept + max(feed, attention)


def memory(
    config: Config, parameters: int, tokens: int, bits: int, ranks: int, policy: Checkpointing, stage: int | None = None
) -> Memory:
    """Return what a rank holds. tokens: positions of its micro-batch. stage: ZeRO stage (default: the configured one)."""
    train, model, zero = config.get(TrainConfig), config.get(ModelConfig), config.get(DeepSpeedConfig).zero_optimization
    stage = int(zero.get("stage", 3)) if stage is None else stage
    size = 4 if train.dtype == "float32" else 2
    activations = peak_bytes(model, tokens, bits, size=size, policy=policy, blocks=False)
    part = parameters / ranks
    gathered = size * _gathered(model, zero, parameters, policy) if stage == 3 and ranks > 1 else 0.0
    bucket = float(zero.get("reduce_bucket_size", REDUCE_BUCKET)) if stage else 0.0
    reduced = min(bucket, parameters)
    left = (gathered + activations) * (1 - reduced / parameters)
    update = {0: 0.0, 1: 8 * part, 2: 4 * part, 3: 4 * min(part, float(zero.get("sub_group_size", SUB_GROUP)))}
    return Memory(
        weights=size * parameters / (ranks if stage == 3 else 1),
        gradients=4 * parameters / (ranks if stage >= 2 else 1),
        # Stage 0 trains in float32 only: its weights are the master weights.
        optimizer=(12 * part) if stage else 8 * parameters,
        average=(4 * part) if train.ema else 0.0,
        buckets=size * bucket,
        gathered=gathered,
        activations=activations,
        reduction=(left + size * reduced + 4 * reduced / ranks) if stage == 3 else 0.0,
        update=update[stage],
    )


def _gathered(model: ModelConfig, zero: dict[str, Any], parameters: int, policy: Checkpointing) -> float:
    """Return how many gathered parameters are alive at once.

    A compiled block keeps views of its weights for the backward pass; unless it is recomputed whole, they stay alive until then.
    """
    if model.compile is not False and policy != "full":
        return parameters
    block = 4 * model.width**2 + 3 * model.width * ffn_width(model)  # one block is gathered at once
    return min(parameters, float(zero.get("stage3_max_live_parameters", LIVE_PARAMETERS)) + block)


def checkpoint_bytes(config: Config, parameters: int, ranks: int, here: int) -> float:
    """Return bytes of host memory that checkpoints copy to, on a host with `here` of the ranks; kept from the first one on."""
    train, stage = config.get(TrainConfig), int(config.get(DeepSpeedConfig).zero_optimization.get("stage", 3))
    part = (12.0 + (4 if train.ema else 0)) * parameters / ranks * here
    return part + (0.0 if stage == 3 else (4 if train.dtype == "float32" else 2) * parameters)  # rank 0 writes the weights
