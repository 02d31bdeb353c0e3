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

    def __init__(self, looks: int) -> None:
        """`looks` is how many descriptors are kept at most."""
        self._room = looks
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
            before = self._described.pop(described.info.sha256, None)
            self._described[described.info.sha256] = described
            self._room += (len(before.looks) if before else 0) - len(described.looks)
            while self._room < 0:
                self._room += len(self._described.popitem(last=False)[1].looks)
