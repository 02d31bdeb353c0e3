"""Batches for the device: closed when full, or when the oldest item has waited long enough."""

import queue
import time

from worker.telemetry import metrics


class Batcher[T]:
    """Many threads put, one takes. Unbounded: what is in flight is bounded by the consumer."""

    def __init__(self, max_size: int, max_delay_seconds: float) -> None:
        self._max_size = max_size
        self._max_delay = max_delay_seconds
        self._queue: queue.SimpleQueue[tuple[float, T] | None] = queue.SimpleQueue()

    def put(self, item: T) -> None:
        """Add one item."""
        self._queue.put((time.monotonic(), item))

    def close(self) -> None:
        """After what is in the queue, `take` returns empty batches."""
        self._queue.put(None)

    def __len__(self) -> int:
        return self._queue.qsize()

    def take(self) -> list[T]:
        """Wait for a batch. It is empty only after `close`."""
        first = self._queue.get()
        if first is None:
            return []
        since, item = first
        batch = [item]
        reason = "full"
        while len(batch) < self._max_size:
            wait = since + self._max_delay - time.monotonic()
            try:
                entry = self._queue.get(timeout=wait) if wait > 0 else self._queue.get_nowait()
            except queue.Empty:
                reason = "delay"
                break
            if entry is None:
                self._queue.put(None)  # seen again by the next take
                reason = "closed"
                break
            batch.append(entry[1])
        metrics.BATCH_SIZE.observe(len(batch))
        metrics.BATCH_CLOSED.labels(reason).inc()
        return batch
