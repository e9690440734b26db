"""One rank of the skip test, started by the deepspeed launcher: `skip_worker.py FOLDER STAGE ...`.

It writes one JSON file per ZeRO stage, data type and kind of step.

A small module that uses one sub-module twice takes the place of the Objective, so that single gradients can be made non-finite on
one rank only.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from cluster.runtime.process_group import connect, leave
from pretrain.engine.config import DeepSpeedConfig, TrainConfig
from pretrain.engine.engine import Engine


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 12)
        self.norm = nn.LayerNorm(12)
        self.out = nn.Linear(12, 3, bias=False)

    def forward(self, batch: Tensor, window: int, frame_mask: float, group: None = None) -> dict[str, Tensor]:
        hidden = torch.tanh(self.inner(batch))
        hidden = self.norm(self.inner(hidden) + hidden)
        return {"loss": self.out(hidden).square().sum() / 64}


class Backwards(torch.autograd.Function):
    """Identity whose gradient is infinite: the loss is finite, the gradient is not."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * math.inf


def batch(step: int, micro: int, rank: int, world: int) -> Tensor:
    """Rows rank::world of the micro-batch's eight."""
    rows = torch.randn(8, 12, generator=torch.Generator().manual_seed(100 * step + micro))
    return rows[rank::world]


def digest(engine: Engine) -> str:
    """Of all weights and moments of this rank, then of all ranks."""
    own = hashlib.sha256()
    for _, value in engine.slices():
        own.update(value.detach().float().contiguous().numpy().tobytes())
    inner = getattr(engine.deepspeed.optimizer, "optimizer", engine.deepspeed.optimizer)
    for moments in inner.state.values():
        for name in sorted(moments):
            if torch.is_tensor(moments[name]):
                own.update(moments[name].float().contiguous().numpy().tobytes())
    return hashlib.sha256("".join(engine.ranks.all_gather(own.hexdigest())).encode()).hexdigest()


CASES = (
    (0, "float32", ""), (2, "float32", ""), (3, "float32", ""), (1, "bfloat16", ""), (3, "bfloat16", ""),
    (3, "float32", "fused"), (3, "bfloat16", "fused"), (3, "float32", "stock"), (3, "bfloat16", "stock"),
)  # fmt: skip
"""`fused` is how a GPU steps, the host aside; `stock` is DeepSpeed's own ZeRO-3."""


def main(folder: Path, stages: set[int]) -> None:
    ranks = connect(60.0, 1)
    for stage, dtype, kind in (case for case in CASES if case[0] in stages):
        zero = (
            {"stage": stage, "contiguous_gradients": True, "reduce_bucket_size": 1000} if kind == "stock" else {"stage": stage}
        )
        section = DeepSpeedConfig.model_validate({"zero_optimization": zero})
        train = TrainConfig.model_validate({"dtype": dtype, "clip": 0.5})

        def run(steps: list[tuple[int, str]]) -> tuple[str, list[bool], list[float]]:
            engine = Engine(Twice, train, section, ranks, seed=5, fused=kind == "fused")  # noqa: B023
            assert engine.lean == (stage == 3 and kind != "stock")  # noqa: B023
            applied, norms = [], []
            for step, trouble in steps:
                for micro in range(2):
                    rows = batch(step, micro, ranks.rank, ranks.world).to(engine.dtype)
                    loss = engine.forward(rows, 0, 0.0, last=micro == 1)["loss"]  # type: ignore[arg-type]
                    if trouble == "gradient" and micro == 0 and ranks.rank == ranks.world - 1:
                        loss = Backwards.apply(loss)  # on one rank, in a micro-batch that is not the last
                    engine.backward(loss, skip=torch.tensor(trouble == "verdict") if micro == 1 else None)
                outcome = engine.step(1e-2)
                applied.append(bool(outcome.applied))
                norms.append(float(outcome.grad_norm))
            return digest(engine), applied, norms

        clean, _, norms = run([(1, ""), (2, ""), (4, "")])
        verdict, applied_verdict, _ = run([(1, ""), (2, ""), (3, "verdict"), (4, "")])
        gradient, applied_gradient, _ = run([(1, ""), (2, ""), (3, "gradient"), (4, "")])
        found = {
            "stage": stage,
            "dtype": dtype,
            "kind": kind,
            "digest": clean,
            "equal": [verdict == clean, gradient == clean],
            "applied": [applied_verdict, applied_gradient],
            "norms": norms,
        }
        if ranks.rank == 0:
            (folder / f"{stage}-{dtype}-{kind}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), set(map(int, sys.argv[2:])))
    leave(0)  # as training does: at the interpreter's end, a thread of gloo may abort the rank
