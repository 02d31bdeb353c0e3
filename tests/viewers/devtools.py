"""Headless Chromium, controlled over the DevTools protocol through a pipe.

Chromium ends by itself when the pipe closes, so a test that dies leaves no browser behind.
"""

import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self

COMMAND = "chromium"
_START_SECONDS = 60.0
_END_SECONDS = 5.0
_READ_BYTES = 1 << 16
_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # continuous integration runs as root; the files are our own
    "--disable-gpu",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-dev-shm-usage",
    "--disable-features=Translate,MediaRouter,OptimizationHints",
    "--force-color-profile=srgb",
    "--force-device-scale-factor=1",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--window-size=1200,1200",
)
# The shell outlives both this process and Chromium, and removes the user data directory.
_LAUNCHER = 'directory="$1"; shift; "$@"; rm -rf -- "$directory"'


class BrowserError(RuntimeError):
    """Chromium could not be started, or answers no longer."""


class TabCrashed(BrowserError):
    """The renderer process of the page died."""


class TabTimeout(BrowserError):
    """The page did not answer in time."""


def is_installed() -> bool:
    """Whether `chromium` is on the PATH."""
    return shutil.which(COMMAND) is not None


class DevTools:
    """A Chromium process of its own, with one page in it."""

    def __init__(self) -> None:
        """Start Chromium. Raises BrowserError."""
        self.directory = tempfile.mkdtemp(prefix="copysieve-chromium-")
        commands_out, self._commands = _pipe()
        self._answers, answers_in = _pipe()
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.is_usable = True
        argv = [COMMAND, *_FLAGS, f"--user-data-dir={self.directory}", "about:blank"]
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, commands_out, 3),  # the protocol's fixed numbers
            (os.POSIX_SPAWN_DUP2, answers_in, 4),
        ]
        self._pid = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", _LAUNCHER, "sh", self.directory, *argv],
            os.environ,
            file_actions=actions,
            setsid=True,
        )
        os.close(commands_out)
        os.close(answers_in)
        try:
            self.call("Browser.getVersion", timeout=_START_SECONDS)
        except BrowserError:
            self.close()
            raise

    def open(self, url: str) -> None:
        """Open a page in a new tab. Later calls of `evaluate` run in this page."""
        self._session = None
        made = self.call("Target.createTarget", url="about:blank")
        target = {"targetId": made["targetId"], "flatten": True}
        attached = self.call("Target.attachToTarget", **target)
        self._session = attached["sessionId"]
        for name in ("Inspector.enable", "Page.enable", "Runtime.enable"):
            self.call(name)
        self.call("Page.navigate", url=url)
        end = time.monotonic() + _START_SECONDS
        while not self.evaluate(
            "document.readyState === 'complete' && location.href !== 'about:blank'"
        ):
            if time.monotonic() > end:
                raise TabTimeout(f"{url} did not load")
            time.sleep(0.02)

    def evaluate(self, expression: str, timeout: float = 30.0) -> Any:
        """The value of a JavaScript expression, awaited. Raises BrowserError."""
        answer = self.call(
            "Runtime.evaluate",
            timeout=timeout,
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in answer:
            raise BrowserError(f"the page failed: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def call(self, method: str, *, timeout: float = 30.0, **params: Any) -> Mapping[str, Any]:
        """Call a method of the protocol. Raises TabCrashed, TabTimeout, BrowserError."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        try:
            _write(self._commands, json.dumps(message).encode() + b"\0")
        except OSError as error:
            self.is_usable = False
            raise BrowserError(f"Chromium ended ({error})") from None
        end = time.monotonic() + timeout
        while True:
            answer = self._receive(method, end)
            if answer.get("method") in ("Inspector.targetCrashed", "Target.targetCrashed"):
                self.is_usable = False
                raise TabCrashed(f"the page crashed during {method}")
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                result: Mapping[str, Any] = answer["result"]
                return result

    def _receive(self, method: str, end: float) -> Mapping[str, Any]:
        """The next message of Chromium."""
        while b"\0" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                raise TabTimeout(f"no answer to {method}")
            data = os.read(self._answers, _READ_BYTES)
            if not data:
                raise BrowserError("Chromium ended")
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: Mapping[str, Any] = json.loads(text)
        return message

    def close(self) -> None:
        """End Chromium and remove its directory. Later calls do nothing."""
        if not self._pid:
            return
        os.close(self._commands)
        os.close(self._answers)
        end = time.monotonic() + _END_SECONDS
        while not (ended := os.waitpid(self._pid, os.WNOHANG)[0]) and time.monotonic() < end:
            time.sleep(0.02)
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        if not ended:
            os.waitpid(self._pid, 0)
        self._pid = 0
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pipe() -> tuple[int, int]:
    """Read and write end, both above the numbers that the child's ends get."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
