"""Files of pictures: which there are, and their bytes."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from worker.errors import FetchError, UnscreenedReason
from worker.settings import Limits


def walk(paths: Iterable[Path]) -> Iterator[Path]:
    """The files themselves, and all files below the folders but hidden ones, sorted."""
    for path in paths:
        if path.is_dir():
            yield from sorted(
                file
                for file in path.rglob("*")
                if file.is_file()
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
        else:
            yield path


def bytes_of(file: Path, limits: Limits) -> bytes:
    """A file's bytes. Raises FetchError if it is too large, or cannot be read."""
    try:
        with file.open("rb") as opened:
            data = opened.read(limits.image_bytes + 1)
    except OSError as error:
        detail = error.strerror or "unreadable"
        raise FetchError(UnscreenedReason.FETCH_FAILED, detail) from None
    if len(data) > limits.image_bytes:
        raise FetchError(UnscreenedReason.TOO_LARGE, "more than limits.image_bytes")
    return data
