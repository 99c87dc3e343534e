"""Shards of the next window of the order, downloaded while this one is read."""

import logging
from concurrent.futures import ThreadPoolExecutor

from shards.errors import BadInput
from shards.order import SampleOrder
from shards.read import ShardDataset
from shards.storage.store import RemoteStore
from shards.window import WindowOrder

log = logging.getLogger(__name__)


class Ahead:
    """Keeps the cache one window ahead of the reader, by a thread; nothing that is read depends on it.

    It does nothing for shards of this machine, for an order that jumps everywhere, or where the cache cannot
    hold two windows: then it would throw out what is being read. Readers of other processes wait for a
    download that is under way rather than begin it again. What cannot be had, the reader will name.

    Args:
        stop: the position before which reading ends.
    """

    def __init__(self, dataset: ShardDataset, order: SampleOrder | WindowOrder, stop: int):
        self.dataset, self.order, self.stop = dataset, order, stop
        self.active = isinstance(dataset.store, RemoteStore) and isinstance(order, WindowOrder)
        self._next = 0
        self._thread: ThreadPoolExecutor | None = None

    def reached(self, position: int) -> None:
        """Say that the sample at a position is being read; positions only grow. Returns at once."""
        if not self.active or position < self._next:
            return
        here, self._next = self.order.window_at(position)
        coming, _ = self.order.window_at(self._next)
        if self._next >= self.stop or not self._fit({*here, *coming}):
            return
        # Not before: what forks a process must not find a thread in the middle of something.
        self._thread = self._thread or ThreadPoolExecutor(1, "ahead")
        for shard in coming:
            self._thread.submit(self._fetch, shard)

    def close(self) -> None:
        """Return when no download is under way; those not begun are dropped."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _fit(self, shards: set[int]) -> bool:
        described = self.dataset.description["shards"]
        return sum(described[shard]["bytes"] for shard in shards) <= self.dataset.store.cache.limit_bytes

    def _fetch(self, shard: int) -> None:
        try:
            self.dataset.store.open(self.dataset.description["shards"][shard]).close()
        except (BadInput, OSError) as error:
            log.info("not fetched ahead: %s", error)
