"""Descriptors of bytes seen lately: a picture that is posted a thousand times is described once."""

import threading
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from worker.records import ImageInfo, Look


class Described(NamedTuple):
    """What is known of some bytes: never a verdict, for the hot set changes."""

    info: ImageInfo
    looks: tuple[Look, ...]
    descriptors: npt.NDArray[np.float32]
    """One row for each look, [looks, dims]."""


class Recent:
    """Least recently used go first; keyed by the sha256 computed here, never by the event's."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._lock = threading.Lock()
        self._described: OrderedDict[str, Described] = OrderedDict()

    def get(self, sha256: str) -> Described | None:
        """What is known of the bytes with this digest."""
        with self._lock:
            if sha256 in self._described:
                self._described.move_to_end(sha256)
            return self._described.get(sha256)

    def put(self, described: Described) -> None:
        """Remember one descriptor."""
        with self._lock:
            self._described[described.info.sha256] = described
            if len(self._described) > self._entries:
                self._described.popitem(last=False)
