"""ZeRO-3's optimizer with neither the host nor a needless copy between gradients and weights.

In:  the DeepSpeed engine of a ZeRO-3 run with AdamW, nothing offloaded. Out: the same engine, whose backward and step never wait
     for a GPU; weights and moments are the same, skipped steps included.

DeepSpeed 0.19 does three things that keep a GPU waiting, and this class replaces them:

- Before gradients are used, the host waits for the stream that reduces them; at one rank, also for each gather. Both are only
  ordering: the next reader is a kernel, never the host, so its stream waits instead (`Ordered`). NCCL's own `wait` does the same.
- The host reads the gradient norm to decide whether the step counts. Fused AdamW takes the decision, and the clipping factor, as
  tensors: if the norm is not finite, it changes neither weights nor moments nor their step count.
- Gradients are copied into a bucket, then into another, divided, converted, copied into the accumulation buffer, joined, and
  scaled, each in a pass of its own over all parameters. Here they are converted into the accumulation buffer, and AdamW reads
  that buffer (at several ranks: after one copy into what is reduced, and the division).

Without fused AdamW (a CPU), the host decides and scales as DeepSpeed does, to the last digit.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed import comm
from deepspeed.runtime.utils import combine_grad_norm_groups
from deepspeed.runtime.zero import partition_parameters
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor

NORM_CHUNK = 2**28
"""Elements of the gradient whose norm one call takes: kernels count in 32 bits."""


class Ordered(torch.cuda.Stream):  # type: ignore[no-untyped-call,misc,unused-ignore]
    """A stream that the current stream waits for when the host is told to."""

    def synchronize(self) -> None:
        """Let what is enqueued on the current stream from now on run after everything on this one."""
        torch.cuda.current_stream().wait_stream(self)  # type: ignore[no-untyped-call,unused-ignore]


def adopt(engine: Any) -> bool:
    """Turn the engine's optimizer into a `Zero3`, and return whether it could be.

    With parameters or moments off the device, or another optimizer than AdamW, DeepSpeed's own step stays.
    """
    optimizer = engine.optimizer
    plain = type(optimizer) is DeepSpeedZeroOptimizer_Stage3 and type(optimizer.optimizer) is torch.optim.AdamW
    if not plain or optimizer.offload_optimizer or optimizer.offload_param or optimizer.contiguous_gradients:
        return False
    optimizer.__class__ = Zero3
    optimizer.start()
    return True


class Zero3(DeepSpeedZeroOptimizer_Stage3):  # type: ignore[misc]
    """See the module's docstring. Made by `adopt`."""

    valid: Tensor
    """Whether the last step was applied; bool, on the device."""
    reduce_and_partition_stream: Any
    averaged_gradients: dict[int, Any]

    def start(self) -> None:
        """Take over from DeepSpeed's class, whose constructor has run."""
        self.fused = bool(self.optimizer.defaults.get("fused"))
        self.alone = comm.get_world_size(group=self.dp_process_group) == 1
        self.valid = torch.ones((), dtype=torch.bool, device=self.device)
        # A reduced gradient stays as it was sent: the accumulation buffer, which is float32, converts it.
        self.gradient_accumulation_dtype = self.communication_data_type
        stream = self.reduce_and_partition_stream
        if isinstance(stream, torch.cuda.Stream):
            self.reduce_and_partition_stream = Ordered(
                stream_id=stream.stream_id, device_index=stream.device_index, device_type=stream.device_type
            )  # type: ignore[no-untyped-call,unused-ignore]
        # With one rank there is nothing to gather: the weights are on the device, and every reader's stream waits for this one.
        for handle in (partition_parameters.NoGatherHandle, partition_parameters.NoGatherCoalescedHandle):
            handle.wait = available

    def _DeepSpeedZeroOptimizer_Stage3__avg_scatter_grads(self, params: list[Any], dtype: torch.dtype) -> list[Tensor]:
        if comm.get_world_size(group=self._get_param_partition_group(params[0])) > 1 or dtype != self.dtype:
            parts: list[Tensor] = super()._DeepSpeedZeroOptimizer_Stage3__avg_scatter_grads(params, dtype)
            return parts
        return [param.grad.reshape(-1) for param in params]

    def partition_grads(self, params: list[Any], partitions: list[Tensor]) -> None:
        """Write this rank's parts of the gradients into the accumulation buffer, or add them to it."""
        buffers = self._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition
        into, parts = [], []
        for param, part in zip(params, partitions, strict=True):
            if param.partition_numel() * self._get_param_partition_rank(param) < param.ds_numel:
                into.append(buffers[param.ds_id].narrow(0, 0, part.numel()))
                parts.append(part.view(-1))
            if param.grad.is_cuda:
                param.grad.record_stream(torch.cuda.current_stream())
            param.grad = None
        if not into:
            return
        if self.micro_step_id == 0:
            torch._foreach_copy_(into, parts, non_blocking=True)
        else:
            torch._foreach_add_(into, parts)

    def _norm(self) -> Tensor:
        """Return the norm of the gradient over all ranks, not finite if any of its elements is not."""
        if not self.fused:
            norm: Tensor = combine_grad_norm_groups(self._get_norm_groups())
            return norm
        parts = self.grad_partitions_flat_buffer.split(NORM_CHUNK)
        square = torch.nn.utils.get_total_norm(parts).double().square()
        if not self.alone:
            comm.all_reduce(square, group=self.dp_process_group)
        return square.sqrt()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Clip and update. Non-finite gradients change nothing."""
        self._pre_step()
        if isinstance(self.reduce_and_partition_stream, Ordered):
            self.reduce_and_partition_stream.synchronize()
        if not self.alone:  # with one rank, the weights are this rank's part of them: the update reaches them where they are
            self._partition_all_parameters()
        self._global_grad_norm = norm = self._norm()
        self.valid = norm.isfinite()
        self.zero_grad(set_to_none=True)
        # DeepSpeed's engine reads `overflow` on the host: a GPU's is not known yet, and `valid` is.
        self.overflow = not self.fused and not bool(self.valid)
        if not self.overflow:
            self._update(norm)
        self.averaged_gradients = {}
        if self.persistent_parameters and not self.alone:
            # DeepSpeed's own gather of them synchronizes the device.
            self.persistent_parameters[0].all_gather_coalesced(self.persistent_parameters).wait()
        self.invalidate_secondary_tensor()

    def _update(self, norm: Tensor) -> None:
        scale = ((norm + 1e-6) / self.clip_grad).clamp(min=1.0) if self.clip_grad > 0 else torch.ones_like(norm)
        if self.fused:
            self.optimizer.grad_scale = scale.float()
            self.optimizer.found_inf = (~self.valid).float()
        at = 0
        for index, master in enumerate(self.fp32_partitioned_groups_flat):
            # The buffer holds the parameters in the order of the groups, as `master` does.
            master.grad = self.grad_partitions_flat_buffer.narrow(0, at, master.numel())
            at += master.numel()
            if not self.fused:
                master.grad.mul_(1.0 / scale)
            self._optimizer_step(index)
            master.grad = None
            self.fp16_partitioned_groups_flat[index].copy_(master)


def available(self: Any, **unused: Any) -> None:
    """Mark the parameters of a gather at one rank as available, in place of waiting for a stream that did nothing."""
    params = [self._NoGatherHandle__param] if type(self).__name__ == "NoGatherHandle" else self._NoGatherCoalescedHandle__params
    for param in params:
        if param.ds_status == partition_parameters.ZeroParamStatus.INFLIGHT:
            param.ds_status = partition_parameters.ZeroParamStatus.AVAILABLE
