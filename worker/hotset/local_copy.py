"""A mirror's files: descriptors as they are stored, rows of references, and where they belong.

    descriptors     fp16 [rows, dims], little-endian, memory-mapped; numbered like the index's rows
    records-N       id, a zero byte, the reference's row (JSON), one after the other
    calibration-ID  the artefact of the calibration
    state.npz       all else, as of one version of the hot set; replaced as a whole

What a saved state refers to is not changed before the next one is saved: rows and records are only
added, and what is removed is erased after that. So a process may be killed at any moment, and what
it leaves is the set of the last state. Every value is held to its checksum when it is read again.
"""

import fcntl
import math
import mmap
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt

from worker.errors import StoreError
from worker.hotset.found import Numbers
from worker.hotset.index import SEGMENT_ROWS

_STATE = "state.npz"

type State = Mapping[str, npt.NDArray[np.generic]]


class Records:
    """Bytes one after the other in a file; what is there is never moved."""

    def __init__(self, file: int, number: int, end: int = 0) -> None:
        self.number = number
        self.end = end
        self._file = file
        self.close = weakref.finalize(self, os.close, file)

    @property
    def is_short(self) -> bool:
        """The file has less than was written into it."""
        return os.fstat(self._file).st_size < self.end

    def append(self, records: Sequence[bytes]) -> tuple[Numbers, Numbers]:
        """Write records; returns their offsets and lengths."""
        lengths = np.fromiter(map(len, records), np.int64, len(records))
        offsets = self.end + np.cumsum(lengths) - lengths
        with _told(None):
            left, at = memoryview(b"".join(records)), self.end
            while left:  # a disk that is nearly full takes a part
                written = os.pwrite(self._file, left, at)
                left, at = left[written:], at + written
        self.end += int(lengths.sum())
        return offsets, lengths

    def read(self, offset: int, length: int) -> bytes:
        """Read a record."""
        return os.pread(self._file, length, offset)

    def erase(self, offset: int, length: int) -> None:
        """Overwrite a record that nothing refers to any more."""
        os.pwrite(self._file, bytes(length), offset)

    def mapped(self) -> mmap.mmap | bytes:
        """All of them, to read. Raises StoreError where the file is shorter."""
        if not self.end:
            return b""  # which cannot be mapped
        if os.fstat(self._file).st_size < self.end:
            raise StoreError("its records are cut off")
        return mmap.mmap(self._file, self.end, prot=mmap.PROT_READ)


class LocalCopy:
    """The files of one hot set: in `folder`, or without a name, gone with the process."""

    def __init__(self, folder: Path | None, dims: int) -> None:
        self.folder = folder
        self.dims = dims
        self._descriptors = self._open("descriptors")
        self._close = weakref.finalize(self, os.close, self._descriptors)
        self._segments: list[npt.NDArray[np.float16]] = []
        self.records = Records(self._open("records-0"), 0)

    def close(self) -> None:
        """Let go of the files."""
        self._segments.clear()
        self._close()
        self.records.close()

    def set_age(self, seconds: float) -> None:
        """Say how long ago the saved state was the store's. Raises OSError."""
        if self.folder is not None:
            then = time.time() - seconds
            os.utime(self.folder / _STATE, (then, then))

    @property
    def age(self) -> float:
        """Seconds since the saved state was the store's; infinite if there is none."""
        if self.folder is None or not (self.folder / _STATE).exists():
            return math.inf
        return time.time() - (self.folder / _STATE).stat().st_mtime

    def write_rows(self, first: int, rows: npt.NDArray[np.float16]) -> None:
        """Write descriptors, [n, dims], from a row on."""
        begin = 0
        while begin < len(rows):
            segment, offset = divmod(first + begin, SEGMENT_ROWS)
            part = rows[begin : begin + SEGMENT_ROWS - offset]
            self.segment(segment)[offset : offset + len(part)] = part
            begin += len(part)

    def read_rows(self, numbers: Numbers) -> npt.NDArray[np.float16]:
        """Read descriptors, [n, dims]."""
        rows = np.empty((len(numbers), self.dims), dtype=np.float16)
        segments = numbers // SEGMENT_ROWS
        for number in np.unique(segments):
            own = segments == number
            rows[own] = self._segments[number][numbers[own] % SEGMENT_ROWS]
        return rows

    def segment(self, number: int) -> npt.NDArray[np.float16]:
        """The descriptors of a segment of the index, [SEGMENT_ROWS, dims], mapped."""
        shape = (SEGMENT_ROWS, self.dims)
        size = 2 * SEGMENT_ROWS * self.dims
        while number >= len(self._segments):
            begin = size * len(self._segments)
            with _told(self.folder):  # reserved here: a full disk must not show in a mapping
                os.posix_fallocate(self._descriptors, begin, size)
            mapped = mmap.mmap(self._descriptors, size, offset=begin)
            self._segments.append(np.frombuffer(mapped, dtype="<f2").reshape(shape))
        return self._segments[number]

    def new_records(self) -> Records:
        """An empty file of records, to take the place of `records`."""
        number = self.records.number + 1
        return Records(self._open(f"records-{number}"), number)

    def keep(self, name: str, data: bytes) -> None:
        """Write a file of what never changes, unless it is there. Raises OSError."""
        if self.folder is None or (self.folder / name).exists():
            return
        new = self.folder / f"{name}.new"
        with open(new, "wb", opener=_private) as file:
            file.write(data)
        new.replace(self.folder / name)

    def read(self, name: str) -> bytes:
        """Read what was kept. Raises StoreError."""
        if self.folder is None:
            raise StoreError("a copy without a folder keeps nothing")
        with _told(self.folder):
            return (self.folder / name).read_bytes()

    def discard(self) -> None:
        """Let go of the files, and remove them."""
        self.close()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def save(self, state: State, kept: str | None = None) -> None:
        """Replace the state as a whole. Without a folder nothing is saved. Raises OSError.

        Of the calibrations the one that it has `kept` stays.
        """
        if self.folder is None:
            return
        records = np.array([self.records.number, self.records.end])
        new = self.folder / f"{_STATE}.new"  # one name, so that what a crash leaves is used again
        with open(new, "wb", opener=_private) as file:
            np.savez(file, allow_pickle=False, records=records, **state)
        new.replace(self.folder / _STATE)
        for left in (*self.folder.glob("records-*"), *self.folder.glob("calibration-*")):
            if left.name not in (f"records-{self.records.number}", kept):
                left.unlink()

    def load(self) -> State:
        """Read the state, and open the records that it refers to. Raises StoreError."""
        if self.folder is None:
            raise StoreError("a copy without a folder has no state")
        try:
            with (
                (self.folder / _STATE).open("rb") as file,
                np.load(file, allow_pickle=False) as stored,
            ):
                state = {name: stored[name] for name in stored.files}
            number, end = map(int, state["records"])
        except Exception as error:  # noqa: BLE001 - a damaged archive may raise anything
            raise StoreError(f"no state can be read: {type(error).__name__}") from None
        self.records.close()
        self.records = Records(self._open(f"records-{number}"), number, end)
        if self.records.is_short:
            raise StoreError("its records are cut off")
        return state

    def _open(self, name: str) -> int:
        if self.folder is None:
            with tempfile.TemporaryFile(prefix="copysieve-") as nameless:
                return os.dup(nameless.fileno())
        return os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


@contextmanager
def _told(folder: Path | None) -> Iterator[None]:
    """Make an error of the disk a StoreError."""
    try:
        yield
    except OSError as error:
        where = f"hotset.folder {folder}" if folder else "the hot set's copy"
        raise StoreError(f"{where}: {error.strerror or error}") from None


class LocalCopies:
    """Where a replica's copies are kept: `root/NAME/N`, N being its own while it lives.

    Each hot set that is loaded gets a folder in there; only the newest with a state is kept.
    Without a root nothing is.
    """

    def __init__(self, root: Path | None, name: str) -> None:
        self._own: Path | None = None
        self.close: Callable[[], object] = lambda: None
        if root is None:
            return
        with _told(root):
            for number in count():
                own = root / name / str(number)
                own.mkdir(mode=0o700, parents=True, exist_ok=True)
                if self._claim(own):
                    self._own = own
                    break

    def fresh(self, dims: int) -> LocalCopy:
        """An empty copy, beside what there is. Raises StoreError where it cannot be written."""
        with _told(self._own):
            folder = None
            if self._own is not None:
                latest = max((int(one.name) for one in self._folders()), default=0)
                folder = self._own / str(latest + 1)
                folder.mkdir(mode=0o700)
            return LocalCopy(folder, dims)

    def newest(self, dims: int) -> LocalCopy | None:
        """What an earlier process has left, if it saved a state."""
        saved = [one for one in self._folders() if (one / _STATE).exists()]
        return LocalCopy(max(saved, key=lambda one: int(one.name)), dims) if saved else None

    def keep_only(self, copy: LocalCopy) -> None:
        """Remove all others."""
        for folder in self._folders():
            if folder != copy.folder:
                shutil.rmtree(folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        if self._own is None:
            return []
        return [one for one in self._own.iterdir() if one.name.isdecimal()]

    def _claim(self, folder: Path) -> bool:
        """Lock a folder for as long as the process lives."""
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self.close = weakref.finalize(self, os.close, lock)
        return True
