"""What ZeRO-3 saves: bytes of model state a rank under ZeRO-0, 2 and 3 on two ranks, against the formula.

    python benchmarks/zero_memory.py [--width 384] [--layers 8] [--ranks 2] [--dtype float32|bfloat16]

Formula in bytes a parameter (fp32, AdamW, after a step): ZeRO-0 keeps weights and two moments, 12; ZeRO-2 whole weights and
its share of masters and moments, 4 + 12 / ranks; ZeRO-3 its share of weights, gradients, masters and moments, 20 / ranks
(DeepSpeed keeps masters of their own in fp32 too, and the buffer of its share of the gradients). In bfloat16 the weights take
2 in place of 4 and all else stays in fp32: ZeRO-2 2 + 12 / ranks, ZeRO-3 18 / ranks; ZeRO-0 does not train in it. Counted are the storages of
all live tensors of a rank; beside it stands what the process's resident memory grew by. Prints a table and one JSON line.

reduce_bucket_size is set to 1e6 elements here: its default of 5e8 is reserved whole, 2 GB of fp32, whatever the model's size.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster.runtime.ports import free_port
from cluster.runtime.process_group import connect
from pretrain.data.batch import Batch
from pretrain.engine.config import DeepSpeedConfig, TrainConfig
from pretrain.engine.engine import Engine
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig
from pretrain.objective.objective import Objective
from tokenizer.quantization.codec_spec import CodecSpec

SPEC = CodecSpec(bits=16, spatial_stride=8, temporal_stride=4, digest="0" * 64)


def live() -> int:
    """Bytes of all tensor storages of this process."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def worker(stage: int, width: int, layers: int, dtype: Literal["float32", "bfloat16"], out: Path) -> None:
    """One rank: three steps, then count."""
    ranks = connect(300.0, 1)
    resident, before = psutil.Process().memory_info().rss, live()
    model = ModelConfig(layers=layers, width=width, heads=width // 64, text_length=8)
    train = TrainConfig(dtype=dtype)
    # Without persistent parameters: at this size they would be a large part, at a real one they are not.
    zero = {
        "stage": stage,
        "reduce_bucket_size": 1_000_000,
        **({"stage3_param_persistence_threshold": 0} if stage == 3 else {}),
    }
    engine = Engine(
        lambda: Objective(VideoAR(model, 16, 256), ObjectiveConfig(), SPEC),
        train,
        DeepSpeedConfig.model_validate({"zero_optimization": zero}),
        ranks,
        seed=0,
    )
    size = SPEC.frame_bytes(4, 4)
    for step in range(3):
        batch = Batch(
            bits=torch.randint(0, 256, (1, size), dtype=torch.uint8),
            text=torch.zeros(1, 8, dtype=torch.int64),
            text_length=torch.tensor([4]),
            weight=torch.tensor([1.0 / ranks.world]),
            seeds=torch.tensor([step]),
            grid=(1, 4, 4),
            ids=("a",),
        )
        engine.backward(engine.forward(batch, 0, 0.0, last=True)["loss"])
        engine.step(1e-4)
    found = ranks.all_gather((live() - before, psutil.Process().memory_info().rss - resident))
    if ranks.rank == 0:
        tensors, grown = (max(pair[i] for pair in found) for i in range(2))
        (out / f"{stage}.json").write_text(json.dumps({"parameters": engine.parameters, "tensors": tensors, "resident": grown}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--worker", nargs=2, metavar=("STAGE", "OUT"))
    given = parser.parse_args()
    if given.worker:
        worker(int(given.worker[0]), given.width, given.layers, given.dtype, Path(given.worker[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for stage in (0, 2, 3) if given.dtype == "float32" else (2, 3):
            command = [str(Path(sys.executable).with_name("deepspeed")), "--hostfile", os.devnull, "--no_local_rank"]
            command += [
                "--num_gpus",
                str(given.ranks),
                "--master_port",
                str(free_port()),
                __file__,
                "--worker",
                str(stage),
                folder,
            ]
            command += ["--width", str(given.width), "--layers", str(given.layers), "--dtype", given.dtype]
            env = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
            subprocess.run(command, env=env, check=True, capture_output=True)
            found[stage] = json.loads((Path(folder) / f"{stage}.json").read_text())
    count = found[3]["parameters"]
    size = 4 if given.dtype == "float32" else 2
    formulas = {0: 12.0, 2: size + 12 / given.ranks, 3: (16.0 + size) / given.ranks}
    print(f"{count / 1e6:.1f}M parameters, {given.dtype}, AdamW, {given.ranks} ranks; MB a rank after a step")
    for stage, item in found.items():
        formula = formulas[stage] * count
        print(
            f"ZeRO-{stage}: tensors {item['tensors'] / 1e6:8.1f}   formula {formula / 1e6:8.1f}   "
            f"({100 * (item['tensors'] / formula - 1):+.1f} %)   resident grew by {item['resident'] / 1e6:8.1f}"
        )
    formula, plain = formulas[3] * count, found[min(found)]["tensors"]
    line = {
        "name": "zero_memory",
        "unit": "bytes a rank",
        "ours": found[3]["tensors"],
        "plain": plain,
        "ratio": found[3]["tensors"] / plain,
        "limit": formula,
        "limit_share": formula / found[3]["tensors"],
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
