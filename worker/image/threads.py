"""Pools of threads that run before there is work for them."""

import threading
from concurrent.futures import ThreadPoolExecutor

from worker.errors import StartupError


def started_pool(workers: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of `workers` threads, all of which run.

    A plain pool starts a thread when work is submitted. Where the system gives no more threads,
    that would fail under load, for one upload. Here it fails at the start.

    Raises StartupError if the threads cannot be started.
    """
    pool = ThreadPoolExecutor(workers, name)
    go = threading.Event()
    try:
        for _ in range(workers):  # each keeps its thread busy, so that the next one needs another
            pool.submit(go.wait)
    except RuntimeError as error:
        pool.shutdown(wait=False, cancel_futures=True)
        raise StartupError(
            f"cannot start {workers} threads ({name}): {error}. Raise the system's or container's"
            " limit of processes, or lower fetch.workers or decode.workers"
        ) from error
    finally:
        go.set()
    return pool
