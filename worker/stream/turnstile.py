"""Uploads with the same id pass one at a time, in the order in which they came."""

import threading
from collections import deque


class Turnstile[T]:
    """Thread-safe; holds only ids that are inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[T]] = {}

    def enter(self, upload_id: str, item: T) -> bool:
        """True: go on. False: another one is inside, and `leave` will hand this one out."""
        with self._lock:
            if upload_id in self._waiting:
                self._waiting[upload_id].append(item)
                return False
            self._waiting[upload_id] = deque()
            return True

    def leave(self, upload_id: str) -> T | None:
        """The one inside has left; returns the next one, which then is inside."""
        with self._lock:
            if queue := self._waiting[upload_id]:
                return queue.popleft()
            del self._waiting[upload_id]
            return None
