"""Pictures to measure with, from packages that anyone can install, and which of them are a series.

    apt-get install tuxpaint-stamps-default opencv-doc
    python -m tests.benchmarks.photographs FOLDER
    copysieve evaluate --images FOLDER/images --groups FOLDER/series.csv ...

No file is there twice. What is no picture of something is left out (symbols and coins, masks,
samples of shapes), and so is what is smaller than 128 pixels, unless `--all` is asked for: false
matches are counted among all kinds of pictures. A series is what has the same folder and the same
first word in its name.
"""

import argparse
import csv
import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import skimage
from PIL import Image

SOURCES = {
    "tuxpaint": Path("/usr/share/tuxpaint/stamps"),
    "opencv": Path("/usr/share/doc/opencv-doc/examples"),
    "skimage": Path(skimage.__file__).parent / "data",
}
NO_PICTURES = re.compile(
    r"symbols/|mask|matte|trimap|shape_sample|segmented|gradient|logo", re.IGNORECASE
)
ENDINGS = {".jpg", ".jpeg", ".png"}
LEAST_SIDE = 128


def pictures(*, every: bool = False) -> Iterator[tuple[str, Path, str]]:
    """Each picture's new name, where it is, and its series."""
    seen: set[bytes] = set()
    for source, folder in SOURCES.items():
        for path in sorted(folder.rglob("*")):
            own = path.relative_to(folder).as_posix()
            if path.suffix.lower() not in ENDINGS or not (every or _is_wanted(path, own)):
                continue
            digest = hashlib.sha256(path.read_bytes()).digest()
            if digest in seen:
                continue
            seen.add(digest)
            word = re.match(r"[a-z]*", path.stem.lower())
            first = word[0] if word and word[0] else path.stem.lower()
            first = "stereo" if first in ("left", "right") else first
            inside = path.parent.relative_to(folder).as_posix()
            yield f"{source}-{own.replace('/', '-')}", path, f"{source}/{inside}/{first}"


def _is_wanted(path: Path, own: str) -> bool:
    if NO_PICTURES.search(own):
        return False
    with Image.open(path) as image:
        return min(image.size) >= LEAST_SIDE


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="is made; gets images/ and series.csv")
    parser.add_argument("--all", action="store_true", help="leave nothing out")
    options = parser.parse_args()
    folder: Path = options.folder
    (folder / "images").mkdir(parents=True)
    rows = list(pictures(every=options.all))
    for name, path, _ in rows:
        shutil.copyfile(path, folder / "images" / name)
    with (folder / "series.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "group"])
        writer.writerows((name, series) for name, _, series in rows)
    print(f"{len(rows)} pictures, {len({series for *_, series in rows})} series: {folder}")


if __name__ == "__main__":
    main()
