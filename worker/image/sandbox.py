"""Decoding in child processes that can do nothing else.

A flaw in a decoder's C code is then worth one child, not the worker. The children are long-lived:
interpreters of their own (never a fork of this process with its threads), with a clean
environment, that run `sandbox_child.py`. Parent and child talk over a socket pair:

    child   once: ready, its address space, whether the kernel confines it
    parent  are you there?
    child   yes
    parent  length, encoded bytes
    child   what decoding will cost        -> the parent reserves it, and says go, or skip
    child   the picture's facts; the pixels lie in shared memory of one fixed size
            or why there is no picture

Whatever comes from a child is taken for hostile: answers are of one length and checked to the last
field, the pixels' shape and the file's format, length and digest are the parent's own. A child that
lies, dies, or is not done at the deadline is killed and replaced, and its picture alone is
unscreened.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import math
import mmap
import os
import queue
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from worker.errors import DecodeError, StartupError, UnscreenedReason
from worker.image.answers import ALIVE_ANSWER, FIRST, LAST, READY, Picture, accepted
from worker.image.decode import Cost, Reserve
from worker.image.formats import FORMATS
from worker.image.preprocess import boxes, shape_of_looks
from worker.image.sandbox_child import ALIVE, ANSWER_BYTES, GO, REQUEST, SKIP
from worker.records import ImageInfo, Look, Looks, Prepared, Preprocessing, Rendition
from worker.settings import MIB, Decode, Limits, Views
from worker.telemetry import log, metrics

CHILD = "worker.image.sandbox_child"
START_SECONDS = 60.0
CLOSE_SECONDS = 1.0
ALIVE_SECONDS = 5.0
SLACK_BYTES = 96 * MIB
"""What a reader takes beside the picture, and the allocator keeps."""
COPIES = 4
"""How often encoded bytes may be in memory."""
_ROOT = Path(__file__).parents[2]
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",  # a thread's own would reserve more than a picture may take
    # Fixed, for else they grow. What is large goes back at once, so that no picture is charged for
    # the last one; what is small stays, since fresh pages for each picture double its time.
    "MALLOC_MMAP_THRESHOLD_": str(16 * MIB),
    "MALLOC_TRIM_THRESHOLD_": str(32 * MIB),
}

logger = log.get(__name__)


class _Broken(Exception):
    """A child that cannot be used any more: `crashed`, `timeout` or `lied`."""

    def __init__(self, why: Literal["crashed", "timeout", "lied"]) -> None:
        super().__init__(why)
        self.why = why


class Sandbox:
    """Children that decode, for as many threads."""

    def __init__(
        self,
        decode: Decode,
        limits: Limits,
        preprocessing: Preprocessing,
        views: Views = Views(),
        children: int | None = None,
        program: str = CHILD,
    ) -> None:
        """Start the children, `decode.workers` unless said otherwise, for as many threads.

        `program` is the module that they run.

        Raises StartupError if they do not start.
        """
        self._settings = decode
        self._limits = limits
        self._preprocessing = preprocessing
        self._views = views
        self._program = program
        self._idle: queue.SimpleQueue[_Child | StartupError] = queue.SimpleQueue()
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._children = children or decode.workers
        for _ in range(self._children):
            self._wanted.put(True)
        # Children die with the thread that started them, so it has to outlive them all.
        self._thread = threading.Thread(target=self._keep, name="sandbox", daemon=True)
        self._thread.start()
        try:
            first = self._take()
        except StartupError:
            self.close()
            raise
        if not first.confined:
            logger.warning("sandbox_without_seccomp", detail="decoders may open files and sockets")
        self._idle.put(first)

    def prepare(self, data: bytes, reserve: Reserve) -> Prepared:
        """Decode one picture in a child, and resize what is chosen of it.

        `reserve` as in `decode`. Raises DecodeError; StartupError when a child cannot be replaced.
        """
        if len(data) > self._limits.image_bytes:
            raise DecodeError(UnscreenedReason.TOO_LARGE, f"{len(data)} bytes encoded")
        if not data:  # a request of this length asks whether a child lives
            raise DecodeError(UnscreenedReason.UNSUPPORTED_FORMAT, "an empty file")
        child = self._take()
        try:
            picture, pixels = child.prepare(data, reserve, self._settings.deadline_seconds)
            self._judge(picture)
        except _Broken as broken:
            raise self._replace(child, broken.why) from None
        except BaseException:
            self._give_back(child)
            raise
        self._give_back(child)
        digest = hashlib.sha256(data).hexdigest()
        facts = picture.model_dump(exclude={"renditions"})
        info = ImageInfo(bytes=len(data), sha256=digest, **facts)
        looks = tuple(
            Look(Rendition(*one), view) for one in picture.renditions for view in boxes(self._views)
        )
        return Prepared(info, looks, pixels)

    def close(self) -> None:
        """End the children. One that is still busy ends when it comes back, or with the process."""
        self._wanted.put(False)
        self._thread.join(CLOSE_SECONDS)

    def _keep(self) -> None:
        """Start children as they are wanted; at the end collect them all."""
        for number in itertools.takewhile(lambda _: self._wanted.get(), itertools.count()):
            try:
                child = _Child(self._program, self._limits, self._preprocessing, self._views)
                # The first ones have less to do, so that not all have served at once.
                served = number / self._children if number < self._children else 0
                child.pictures = int(served * self._settings.pictures_per_process)
            except Exception as error:  # noqa: BLE001 - children die with this thread, and who waits for one would do so for ever
                why = error.strerror if isinstance(error, OSError) else type(error).__name__
                self._idle.put(StartupError(f"a decoder did not start: {why}"))
            else:
                self._idle.put(child)
        for _ in range(self._children):
            if isinstance(last := self._idle.get(), _Child):
                last.end()

    def _take(self) -> "_Child":
        """An idle child that is ready and well."""
        while True:
            child = self._idle.get()
            if isinstance(child, StartupError):
                self._idle.put(child)
                raise child
            try:
                child.wait_ready()
            except _Broken:
                child.end()
                failure = StartupError(f"a decoder did not start: {child.death}")
                self._idle.put(failure)
                raise failure from None
            if child.answers():
                return child
            self._replace(child, "crashed")  # while it was idle: no picture's fault

    def _judge(self, picture: Picture) -> None:
        """An honest child would not have let it pass."""
        renditions = picture.renditions
        if (
            picture.format not in FORMATS
            or picture.width * picture.height > self._limits.image_pixels
            or picture.frames_decoded > min(picture.frames, self._limits.image_frames)
            or max(frame for frame, *_ in renditions) >= picture.frames_decoded
            or len(set(renditions)) < len(renditions)
            or len(renditions) > self._views.renditions
        ):
            raise _Broken("lied")

    def _give_back(self, child: "_Child") -> None:
        """Put a child back, or end one that has served and order another."""
        if child.pictures < self._settings.pictures_per_process:
            self._idle.put(child)
            return
        child.end()
        metrics.DECODERS_REPLACED.labels("served").inc()
        self._wanted.put(True)

    def _replace(self, child: "_Child", why: Literal["crashed", "timeout", "lied"]) -> DecodeError:
        """Kill a child and order another; returns the error of its picture."""
        child.end()
        metrics.DECODERS_REPLACED.labels(why).inc()
        self._wanted.put(True)
        if why == "timeout":
            seconds = self._settings.deadline_seconds
            return DecodeError(UnscreenedReason.DECODE_TIMEOUT, f"not decoded in {seconds:g} s")
        detail = "the decoder gave a false answer" if why == "lied" else child.death
        logger.warning("decoder_replaced", reason=why, detail=detail)
        return DecodeError(UnscreenedReason.DECODER_CRASHED, detail)


class _Child:
    """One process, and what is shared with it. Used by one thread at a time."""

    def __init__(
        self, program: str, limits: Limits, preprocessing: Preprocessing, views: Views
    ) -> None:
        """Start it, and do not wait for it. Raises OSError."""
        self.confined = False
        self.pictures = 0
        self._ready = False
        self._ends = time.monotonic() + START_SECONDS
        self._views = len(boxes(views))
        self._shape = shape_of_looks(preprocessing, views)
        self._most = limits.in_flight_decoded_bytes // 2 + COPIES * limits.image_bytes
        with contextlib.ExitStack() as parts:
            self._channel, theirs = socket.socketpair()
            parts.callback(theirs.close)
            pixels = _sealed_memory(math.prod(self._shape))
            parts.callback(os.close, pixels)
            self._shared = mmap.mmap(pixels, 0, prot=mmap.PROT_READ)
            setup = {
                "channel": theirs.fileno(),
                "pixels": pixels,
                "limits": limits.model_dump(),
                "preprocessing": asdict(preprocessing),
                "views": views.model_dump(),
            }
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and program
                (sys.executable, "-P", "-s", "-B", "-m", program, json.dumps(setup)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={"PYTHONPATH": str(_ROOT)} | _ENVIRONMENT,
                pass_fds=(theirs.fileno(), pixels),
                start_new_session=True,  # Ctrl-C is for us: children go last
            )

    def wait_ready(self) -> None:
        """Wait for the end of its start. Raises _Broken if it does not get there."""
        if self._ready:
            return
        ready = self._answer(READY)
        self._idle_bytes, self.confined, self._ready = ready.address_space, ready.confined, True
        for what in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
            self._limit(what, 0)
        if not self.confined:  # or it would be threads that it forbids, and HEIC needs one
            self._limit(resource.RLIMIT_NPROC, 0)

    def answers(self) -> bool:
        """Whether it lives and has nothing to say but that.

        What a child said too much is read here, in the place of its answer, and never as the answer
        to the next picture.
        """
        self._ends = time.monotonic() + ALIVE_SECONDS
        try:
            self._send(REQUEST.pack(ALIVE))
            self._answer(ALIVE_ANSWER)
        except _Broken:
            return False
        return True

    @property
    def death(self) -> str:
        """What it died of, once it has."""
        code = self._process.returncode
        if code < 0:
            known = {number.value: number.name for number in signal.Signals}
            return f"the decoder died of {known.get(-code, f'signal {-code}')}"
        return f"the decoder ended with exit code {code}"

    def prepare(self, data: bytes, reserve: Reserve, seconds: float) -> tuple[Picture, Looks]:
        """Raises DecodeError if it refuses the picture, _Broken if it has to go.

        Whatever else `reserve` raises leaves the child as it was.
        """
        self.pictures += 1
        copies = COPIES * len(data)
        self._bound_memory(copies)
        self._ends = time.monotonic() + seconds
        self._send(REQUEST.pack(len(data)))
        self._send(data)
        cost = accepted(self._answer(FIRST))
        if cost.nbytes > self._most - copies:
            raise _Broken("lied")
        waiting = time.monotonic()
        with contextlib.ExitStack() as reserved:
            try:
                reserved.enter_context(reserve(Cost(cost.nbytes, cost.pixels)))
            except BaseException:
                self._send(SKIP)
                raise
            self._ends += time.monotonic() - waiting  # that was not the child's time
            self._bound_memory(copies + cost.nbytes)
            self._send(GO)
            picture = accepted(self._answer(LAST))
            count = len(picture.renditions) * self._views
            pixels = np.frombuffer(self._shared, np.uint8).reshape(self._shape)
            return picture, pixels[:count].copy()

    def end(self) -> None:
        """Kill it."""
        self._channel.close()
        with contextlib.suppress(BufferError):
            self._shared.close()
        self._process.kill()
        self._process.wait()

    def _bound_memory(self, nbytes: int) -> None:
        """Beyond what it holds idle; until the next call."""
        idle = self._idle_bytes + SLACK_BYTES
        self._limit(resource.RLIMIT_AS, idle + nbytes, idle + self._most)

    def _limit(self, what: int, soft: int, hard: int | None = None) -> None:
        with contextlib.suppress(ProcessLookupError):  # the next answer tells
            resource.prlimit(self._process.pid, what, (soft, soft if hard is None else hard))

    def _send(self, data: bytes) -> None:
        with self._as_broken():
            self._channel.sendall(data)

    def _answer[T](self, shape: TypeAdapter[T]) -> T:
        received = b""
        while len(received) < ANSWER_BYTES:
            with self._as_broken():
                part = self._channel.recv(ANSWER_BYTES - len(received))
            if not part:
                raise _Broken("crashed")
            received += part
        try:
            return shape.validate_json(received)
        except ValidationError:
            raise _Broken("lied") from None

    @contextlib.contextmanager
    def _as_broken(self) -> Iterator[None]:
        """One step of the talk, in the time that is left."""
        self._channel.settimeout(max(0.001, self._ends - time.monotonic()))
        try:
            yield
        except TimeoutError:
            raise _Broken("timeout") from None
        except OSError:
            raise _Broken("crashed") from None


def _sealed_memory(nbytes: int) -> int:
    """Shared memory that nobody can shrink under the other's feet; returns its descriptor."""
    descriptor = os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, nbytes)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor
