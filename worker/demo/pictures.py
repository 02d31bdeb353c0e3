"""The photographs that the demo works with: scikit-image's, or those of a folder."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from worker.errors import StartupError

LEAST = 6
"""Pictures without which there is nothing to tell apart."""
MOST = 60
SMALLEST_SIDE = 128
LARGEST_SIDE = 512
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}

# The right half of a stereo pair shows what the left half shows; the others are test patterns.
_NOT_ONE_PHOTOGRAPH = {"motorcycle_right", "chessboard_GRAY", "chessboard_RGB", "phantom"}


@dataclass(frozen=True, slots=True)
class Picture:
    """One photograph, RGB, `LARGEST_SIDE` pixels at most on either side."""

    name: str
    image: Image.Image


def bundled() -> list[Picture]:
    """The photographs that lie in the installed scikit-image; nothing is downloaded."""
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise StartupError("scikit-image is not installed: the extra copysieve[demo] brings it")
    files = (Path(package.origin).parent / "data").iterdir()
    return _read(path for path in files if path.stem not in _NOT_ONE_PHOTOGRAPH)


def of_folder(folder: Path) -> list[Picture]:
    """The pictures of a folder and its subfolders, `MOST` at most, evenly over their names.

    Raises StartupError where there are too few.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    step = max(1, -(-len(paths) // MOST))
    pictures = _read(paths[::step])
    if len(pictures) < LEAST:
        raise StartupError(
            f"{folder}: {len(pictures)} pictures of at least {SMALLEST_SIDE} pixels a side, "
            f"the demo needs {LEAST}"
        )
    return pictures


def _read(paths: Iterable[Path]) -> list[Picture]:
    """Sorted by name; what is no picture, or a very small one, is left out."""
    found = []
    for path in sorted(paths):
        if path.suffix.lower() not in SUFFIXES:
            continue
        try:
            with Image.open(path) as opened:
                opened.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
                rgba = opened.convert("RGBA")
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        if min(rgba.size) >= SMALLEST_SIDE:
            white = Image.new("RGBA", rgba.size, "white")
            found.append(Picture(path.stem, Image.alpha_composite(white, rgba).convert("RGB")))
    return found
