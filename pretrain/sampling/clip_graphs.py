"""CUDA graphs of clips: the steps of each latent frame, recorded once for each shape of a clip and replayed by one launch.

In:  a way to make a `ClipState` of a shape.
Out: the same state and its graphs, one a frame; the first frame's holds the first forward over text and prefix too.

A step launches about a dozen kernels a block, which take a GPU less time than the launches take a CPU. A graph's replay is one
launch. The graphs read weights and buffers where they were at the recording: weights may change in place, but may not move.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch

from pretrain.sampling.clip_state import ClipShape, ClipState

KEPT = 4
"""Shapes whose graphs are kept; the one not used for the longest time is dropped. Each holds its cache of keys and values."""
WARM_UPS = 2
"""Runs before the recording, in which kernels are loaded and blocks compiled."""


class RecordedClip:
    """A clip's state and the graph of each frame after the prefix."""

    def __init__(self, state: ClipState, say: Callable[[str], None]) -> None:
        self.state, self._device = state, state.packed.device
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        frames = range(state.shape.known, state.shape.frames)
        with torch.cuda.device(self._device):
            self._warm_up(frames, say)
            pool = torch.cuda.graph_pool_handle()
            for frame in frames:
                say(f"recording CUDA graphs, frame {frame + 1} of {state.shape.frames}")
                # The graphs share memory: they run in order, and what outlives one is in the state's buffers.
                self._graphs[frame] = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self._graphs[frame], pool=pool):
                    _run(state, frame)

    def run(self, frame: int) -> None:
        """Run the steps of a frame on the current stream, without waiting for them."""
        with torch.cuda.device(self._device):
            self._graphs[frame].replay()

    def _warm_up(self, frames: range, say: Callable[[str], None]) -> None:
        """Run all steps on a stream beside the current one, as PyTorch asks for before a recording."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for turn in range(WARM_UPS):
                for frame in frames:
                    say(f"warming up, run {turn + 1} of {WARM_UPS}, frame {frame + 1} of {self.state.shape.frames}")
                    _run(self.state, frame)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()


class ClipGraphs:
    """The recorded clips of the latest shapes."""

    def __init__(self) -> None:
        self._clips: OrderedDict[ClipShape, RecordedClip] = OrderedDict()

    def get(self, shape: ClipShape, make: Callable[[], ClipState], say: Callable[[str], None]) -> RecordedClip:
        """Return the recorded clip of a shape. make: its state, if it has to be recorded. say: told what is being done then.

        No other thread may use the GPU while a clip is recorded.
        """
        if shape not in self._clips:
            while len(self._clips) >= KEPT:
                self._clips.popitem(last=False)
            self._clips[shape] = RecordedClip(make(), say)
        self._clips.move_to_end(shape)
        return self._clips[shape]


def _run(state: ClipState, frame: int) -> None:
    for _ in state.frame(frame):
        pass
