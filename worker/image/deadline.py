"""Cuts connections at a deadline.

A timeout on a socket starts anew with every byte, so a server that sends one now and then holds a
thread for as long as it likes. Here one thread watches all connections in use and shuts down those
whose time is over; the thread that reads from one then sees its end.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator


class Watch:
    """One deadline, on the monotonic clock, and the connections that end with it."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.expired = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []

    def left(self) -> float:
        """Seconds until the deadline. Raises TimeoutError when there are none."""
        left = self.deadline - time.monotonic()
        if self.expired or left <= 0:
            raise TimeoutError
        return left

    def add(self, connection: socket.socket) -> None:
        """Watch a connection. Raises TimeoutError if the deadline has passed."""
        with self._lock:
            if self.expired:
                raise TimeoutError
            # A descriptor of our own: its number cannot be reused while we hold it, and shutting it
            # down ends the connection for every copy, below TLS as well.
            copy = socket.fromfd(connection.fileno(), connection.family, connection.type)
            self._sockets.append(copy)

    def expire(self) -> None:
        """Shut all down."""
        with self._lock:
            self.expired = True
            for connection in self._sockets:
                with contextlib.suppress(OSError):  # ended by itself
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the connections, which stay open."""
        with self._lock:
            for connection in self._sockets:
                connection.close()
            self._sockets.clear()


class Watchdog:
    """The thread that ends watches on time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watches: set[Watch] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="fetch-watchdog", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def watch(self, seconds: float) -> Iterator[Watch]:
        """A watch that expires in `seconds`, or ends with the `with`."""
        watch = Watch(time.monotonic() + seconds)
        with self._changed:
            self._watches.add(watch)
            self._changed.notify()
        try:
            yield watch
        finally:
            with self._changed:
                self._watches.discard(watch)
            watch.close()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for watch in [w for w in self._watches if w.deadline <= now]:
                    watch.expire()
                    self._watches.discard(watch)
                following = min((w.deadline for w in self._watches), default=None)
                self._changed.wait(None if following is None else following - now)
