"""The pictures of `canaries.folder`, the references they are of, and the copies made of them."""

import hashlib
import io
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from worker.errors import StartupError
from worker.hotset.types import Reference
from worker.image.edits import Edit, greyscale, mirrored, recoloured, reencoded, resized
from worker.image.preprocess import decode
from worker.settings import Limits

LARGEST_SIDE = 1024
"""Copies are no larger, so that no topic refuses one."""
_QUALITY = 80


@dataclass(frozen=True, slots=True)
class Canary:
    """A picture and the reference that copies of it must be found to be copies of."""

    picture: Path
    reference: Reference


@dataclass(frozen=True, slots=True)
class Paired:
    """What of folder and references fits together, and what is left on either side."""

    canaries: Sequence[Canary]
    pictures: Sequence[Path]
    references: Sequence[Reference]


def scan(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder, and below it, that are not hidden, by the sha256 of their bytes.

    Raises StartupError where there is no such folder, or it or a file cannot be read.
    """
    found: dict[str, list[Path]] = {}
    try:
        if not folder.is_dir():
            raise StartupError(f"canaries.folder {folder}: no such folder")
        for path in sorted(folder.rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if not hidden and path.is_file():
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                found.setdefault(digest, []).append(path)
    except OSError as error:
        raise StartupError(f"canaries.folder {folder}: {error.strerror}") from None
    return found


def pair(files: Mapping[str, Sequence[Path]], references: Iterable[Reference]) -> Paired:
    """Tie files, as `scan` tells them, to references by their sha256; only canaries count."""
    canaries: list[Canary] = []
    without: list[Reference] = []
    tied: set[str] = set()
    for reference in references:
        if not reference.canary:
            continue
        digest = reference.sha256 or ""
        if digest in files:
            tied.add(digest)
            canaries.append(Canary(files[digest][0], reference))
        else:
            without.append(reference)
    untied = [path for digest, paths in files.items() if digest not in tied for path in paths]
    return Paired(canaries, untied, without)


def copy_of(picture: Path, upload_id: str, limits: Limits) -> bytes:
    """An edited copy, a JPEG. The edit follows from the upload id, and no two have the same bytes.

    Raises OSError and Unscreenable (DecodeError) where there is no picture to be had.
    """
    luck = random.Random(upload_id)  # noqa: S311 - variety, not secrecy
    image = Image.fromarray(decode(picture.read_bytes(), limits, LARGEST_SIDE // 2).pixels)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    edited = luck.choice(EDITS)(_trimmed(image, luck))
    saved = io.BytesIO()
    edited.save(saved, "JPEG", quality=_QUALITY, comment=upload_id.encode())
    return saved.getvalue()


def _trimmed(picture: Image.Image, luck: random.Random) -> Image.Image:
    """Without up to 4% of each side: never the same crop again."""
    width, height = picture.size
    left, right = (int(width * luck.uniform(0, 0.04)) for _ in range(2))
    upper, lower = (int(height * luck.uniform(0, 0.04)) for _ in range(2))
    return picture.crop((left, upper, max(left + 1, width - right), max(upper + 1, height - lower)))


def _barred(picture: Image.Image) -> Image.Image:
    """With a white bar below, as a caption is put."""
    page = Image.new("RGB", (picture.width, picture.height + max(1, picture.height // 12)), "white")
    page.paste(picture)
    return page


EDITS: Sequence[Edit] = (reencoded, resized, mirrored, recoloured, greyscale, _barred)
"""Those that any model here finds with ease: what is on trial is the way there and back."""
