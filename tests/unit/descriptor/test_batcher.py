import threading

import numpy as np

from worker.descriptor.batcher import Batcher
from worker.descriptor.recent import Described, Recent
from worker.records import ImageInfo, Look, Rendition


def test_a_batch_closes_when_it_is_full_and_keeps_the_order():
    batcher: Batcher[int] = Batcher(max_size=3, max_delay_seconds=60)
    for n in range(7):
        batcher.put(n)
    batcher.close()
    assert [batcher.take() for _ in range(4)] == [[0, 1, 2], [3, 4, 5], [6], []]


def test_without_delay_it_takes_what_is_there():
    batcher: Batcher[int] = Batcher(max_size=3, max_delay_seconds=0)
    batcher.put(0)
    assert batcher.take() == [0]


def test_it_waits_for_the_first_and_gathers_what_comes_in_time():
    batcher: Batcher[int] = Batcher(max_size=2, max_delay_seconds=60)
    threading.Timer(0.05, batcher.put, [0]).start()
    threading.Timer(0.10, batcher.put, [1]).start()
    assert batcher.take() == [0, 1]


def test_the_least_recently_used_goes_first():
    recent = Recent(looks=2)

    def described(name, looks=1):
        info = ImageInfo("JPEG", 1, 1, looks, 1, name, truncated=False)
        seen = tuple(Look(Rendition(frame), "plain") for frame in range(looks))
        return Described(info, seen, np.zeros((looks, 2), np.float32))

    recent.put(described("a"))
    recent.put(described("b"))
    assert recent.get("a") is not None
    recent.put(described("c"))
    assert recent.get("b") is None
    assert recent.get("a") is not None
    assert recent.get("c") is not None
    recent.put(described("c"))
    assert recent.get("a") is not None
    recent.put(described("d", looks=2))
    assert (recent.get("a"), recent.get("c")) == (None, None)
    recent.put(described("e", looks=3))
    assert (recent.get("d"), recent.get("e")) == (None, None)
    recent.put(described("f"))
    assert recent.get("f") is not None
