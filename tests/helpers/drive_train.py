"""Runs tokenizer training on moving stripes. Started by test_train.py: python drive_train.py CONFIG STOP_AT [overrides].

STOP_AT >= 0 makes the clip source fail at that step, as a job that dies does. `term` sends SIGTERM to the last rank while it makes
the clips of step 2, as the end of a preempted host's time does.
"""

from __future__ import annotations

import os
import signal
import sys

import torch
from torch import Tensor

from cluster.config import load
from tokenizer.config import TrainingBucket
from tokenizer.training.train import train


class Stripes:
    """Pure function of (step, clip): coloured stripes that move."""

    def __init__(self, stop_at: int, *, term: bool) -> None:
        self.stop_at, self.term = stop_at, term

    def batch(self, step: int, bucket: TrainingBucket, rank: int, world: int) -> Tensor:
        if step == self.stop_at:
            raise OSError(f"stopped on purpose at step {step}")
        if self.term and step == 2 and rank == world - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        share = bucket.batch // world
        clips = []
        for number in range(rank * share, (rank + 1) * share):
            generator = torch.Generator().manual_seed(1000 * step + number)
            speed, phase, *colour = torch.rand(5, generator=generator).tolist()
            t = torch.arange(bucket.frames).view(-1, 1, 1, 1)
            x = torch.arange(bucket.width).view(1, 1, -1, 1)
            wave = torch.sin(x / 4 + 6 * phase + t * speed).expand(-1, bucket.height, -1, -1)
            clips.append((127.5 + 120 * wave * torch.tensor(colour)).to(torch.uint8))
        return torch.stack(clips)


def main() -> None:
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    torch.set_num_threads(1)
    code = train(load(words[0], words[2:]), Stripes(-1 if words[1] == "term" else int(words[1]), term=words[1] == "term"))
    sys.stdout.flush()
    os._exit(code)  # as tokenizer_job does: a thread of gloo may abort a rank that takes its interpreter down


if __name__ == "__main__":
    main()
