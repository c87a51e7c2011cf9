"""Votes: what any rank wants at an update, all ranks do at the same one."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor


class Votes:
    """Lets all ranks act at the same update on what one of them wants.

    The votes of an update travel between the hosts while the next one is computed, so nobody waits
    for them.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._alone = accelerator.num_processes == 1
        # NCCL carries no tensors of the host
        self._group = (
            None if self._alone else cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        )
        self._sent: tuple[Tensor, Any] | None = None

    def exchange(self, *wishes: bool) -> list[bool]:
        """Send what this rank wants, and return what any rank wanted an update ago; alone, what it wants now."""
        if self._alone:
            return list(wishes)
        before = self._sent
        votes = torch.tensor(wishes, dtype=torch.int32)
        self._sent = (
            votes,
            dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group, async_op=True),
        )
        if before is None:
            return [False] * len(wishes)
        result, work = before
        work.wait()
        return (result > 0).tolist()

    def finish(self) -> None:
        """Wait for the votes that are still on their way."""
        if self._sent is not None:
            _, work = self._sent
            work.wait()
            self._sent = None
