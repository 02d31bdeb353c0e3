"""`copysieve run`."""

import contextlib
import ctypes
import signal
import sys

import worker
from worker.cli.common import ConfigOption, load_settings
from worker.telemetry import log, metrics

_ARENA_MAX = -8
"""Of glibc's `mallopt`."""

logger = log.get(__name__)


def run(config: ConfigOption = None) -> None:
    """Run one replica: take uploads, screen them, publish verdicts, until SIGTERM.

    It joins the consumer group once the model is warm and the hot set is loaded. On SIGTERM it
    takes nothing more, finishes what is in flight, commits, and exits 0; what is not finished
    within `shutdown.deadline_seconds` is left to the next owner, and the exit code is 1.
    """
    settings = load_settings(config)
    # Until the replica has its own: as PID 1 a process ignores what it has no handler for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    log.configure(settings.log, replica=settings.replica.name)
    _share_heaps()

    # A wrong setting is told at once: these take seconds to import.
    from worker.canary.pictures import scan  # noqa: PLC0415
    from worker.cli.replica import Replica  # noqa: PLC0415
    from worker.descriptor import embedders  # noqa: PLC0415
    from worker.hotset.store import open_store  # noqa: PLC0415
    from worker.stream.admin import require_topics  # noqa: PLC0415

    if settings.canaries.per_minute and settings.canaries.folder:
        scan(settings.canaries.folder)
    for warning in require_topics(settings):
        logger.warning("check", detail=warning)
    store = open_store(settings.redis)
    embedder = embedders.load(settings.model)
    metrics.BUILD.info({"version": worker.__version__, "model": embedder.model.name})
    Replica(settings, store, embedder).run()


def _share_heaps() -> None:
    """Two heaps for all threads, before there are any.

    glibc would give each of our threads one of its own, and each would keep what its largest
    picture took. `make fuzz` has the figures: without this memory grew by a fifth.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has other habits
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 2)
