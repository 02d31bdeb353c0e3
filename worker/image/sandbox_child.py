"""The program of a sandboxed child: bytes in, pixels at the model's size out.

It is started by `sandbox.py`, which tells how to talk with it. It imports as little as it can
(pydantic alone would double its memory), warms up, gives up every right it does not need, and only
then reads the first picture.
"""

import ctypes
import gc
import json
import mmap
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
from PIL import Image, ImageCms

from worker.errors import DecodeError
from worker.image import confine
from worker.image.color import to_srgb
from worker.image.decode import Cost, Reserve
from worker.image.formats import FORMATS, HEIC_SAMPLE, JXL_SAMPLE
from worker.image.preprocess import prepare
from worker.records import Prepared, Preprocessing

if TYPE_CHECKING:
    from worker.settings import Limits, Views

ANSWER_BYTES = 2048
"""Every answer is JSON, filled up with spaces to this."""
REQUEST = struct.Struct("!Q")
"""Length of the encoded bytes that follow, or `ALIVE`."""
ALIVE = 0
"""No picture: asks only for an answer."""
GO, SKIP = b"+", b"-"
"""Whether the picture is to be decoded."""
_WARNING_BYTES = ctypes.c_size_t(4096)
OWN_FACTS = ("bytes", "sha256")
"""What the parent knows better."""

type Prepare = Callable[["bytes", "Limits", Preprocessing, "Views", Reserve], Prepared]
type Work = Callable[[bytes, Reserve], Prepared]


class _Skipped(Exception):
    """The parent does not want the picture now."""


def main(prepare: Prepare = prepare) -> None:
    """Serve until the parent hangs up. `sys.argv[1]` is the setup, JSON."""
    confine.tie_to_parent()
    setup = json.loads(sys.argv[1])
    limits = cast("Limits", SimpleNamespace(**setup["limits"]))
    preprocessing = Preprocessing(**setup["preprocessing"])
    channel = socket.socket(fileno=setup["channel"])
    views = cast("Views", SimpleNamespace(**setup["views"]))
    shape = (-1, preprocessing.size, preprocessing.size, 3)
    shared = np.frombuffer(mmap.mmap(setup["pixels"], 0), np.uint8).reshape(shape)

    def work(data: bytes, reserve: Reserve) -> Prepared:
        return prepare(data, limits, preprocessing, views, reserve)

    _warm_up(work)
    _close_output()
    memory = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    ready = {"address_space": memory * mmap.PAGESIZE, "confined": confine.confine()}
    _tell(channel, ready)

    @contextmanager
    def reserve(cost: Cost) -> Iterator[None]:
        _tell(channel, cost._asdict())
        if _receive(channel, len(GO)) != GO:
            raise _Skipped
        yield

    gc.collect()
    gc.freeze()
    while True:
        gc.collect()  # an error's traceback may hold a picture in a cycle
        (length,) = REQUEST.unpack(_receive(channel, REQUEST.size))
        if length == ALIVE:
            _tell(channel, {"alive": True})
            continue
        data = _receive(channel, length)
        try:
            prepared = work(data, reserve)
        except _Skipped:
            continue
        except DecodeError as error:
            _tell(channel, {"reason": error.reason, "detail": str(error)})
            continue
        except BaseException:  # noqa: BLE001 - telling more would need what was given up
            os._exit(1)
        shared[: len(prepared.pixels)] = prepared.pixels
        facts = {k: v for k, v in asdict(prepared.info).items() if k not in OWN_FACTS}
        renditions = dict.fromkeys(astuple(look.rendition) for look in prepared.looks)
        _tell(channel, facts | {"renditions": list(renditions)})


def _warm_up(work: Work) -> None:
    """Decode a picture of each kind: what is imported on the way cannot be imported later."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    to_srgb(Image.new("RGB", (16, 16)), profile)
    samples = [HEIC_SAMPLE, JXL_SAMPLE]
    for kind in FORMATS.keys() - {"HEIC", "JXL"}:
        for mode in ("RGB", "RGBA", "L", "P"):
            stream = BytesIO()
            with suppress(OSError):  # the format does not know the mode
                Image.new(mode, (16, 16)).save(stream, kind)
                samples += [stream.getvalue(), stream.getvalue()[:-12]]
    for data in samples:
        with suppress(DecodeError):
            work(data, _at_once)


@contextmanager
def _at_once(_cost: Cost) -> Iterator[None]:
    yield


def _close_output() -> None:
    """What was good for telling why a start failed is no way out for a picture.

    libtiff warns of what it meets on C's stderr, and the kernel would end us for the call. What it
    writes goes to a little memory, which when it is full takes no more.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    libc = ctypes.CDLL(None)
    libc.fmemopen.restype = ctypes.c_void_p
    ctypes.c_void_p.in_dll(libc, "stderr").value = libc.fmemopen(None, _WARNING_BYTES, b"w")


def _tell(channel: socket.socket, answer: Mapping[str, object]) -> None:
    channel.sendall(json.dumps(answer).encode().ljust(ANSWER_BYTES))


def _receive(channel: socket.socket, length: int) -> bytes:
    """Exactly `length` bytes; ends the process when the parent has hung up."""
    parts = []
    while length:
        if not (part := channel.recv(min(length, 1 << 20))):
            os._exit(0)
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


if __name__ == "__main__":
    main()
