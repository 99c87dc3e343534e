"""Samples that were replaced because they are corrupt: counted over all ranks, each named once."""

import logging
from typing import Literal

import torch.distributed as dist

from pipeline.data import Batch

log = logging.getLogger(__name__)


class Quarantine:
    """What `data.on_corrupt` makes of corrupt samples in one attempt at a stage.

    Args:
        policy: "fail" has nothing to count, and costs nothing.
        world: number of ranks.
    """

    def __init__(self, policy: Literal["fail", "quarantine"], world: int):
        self.active, self.world = policy == "quarantine", world
        self._named: set[str] = set()

    def count(self, batch: Batch) -> int:
        """Return how many samples of a micro-batch stand in for others, on all ranks together. Collective."""
        if not self.active:
            return 0
        everyone: list[list[list[str]]] = [[] for _ in range(self.world)]
        mine = [target["corrupt"] for _, target in batch if target["corrupt"]]
        dist.all_gather_object(everyone, mine)
        replaced = [reasons for rank in everyone for reasons in rank]
        for reason in (reason for reasons in replaced for reason in reasons):
            self._name(reason)
        return len(replaced)

    def _name(self, reason: str) -> None:
        # Each epoch meets it again. Only rank 0's log is shown to the user.
        if reason not in self._named and dist.get_rank() == 0:
            log.warning("quarantined: %s", reason)
        self._named.add(reason)
