"""How many renditions honest pictures have: what is described of a file costs one run of the model.

python -m tests.benchmarks.bench_renditions [--images FOLDER ...] [--most 60]

Photographs (scikit-image's, or those of the folders) as cameras, phones, scanners and editors write
them, in every format. Pictures of the folders that have transparency, or move, are read as they
are. Prints the mean by kind of file, and for all files without transparency or motion together.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import skimage
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.fixtures import profiles, writers
from worker.errors import DecodeError
from worker.image.decoder import Decoder
from worker.records import Preprocessing
from worker.settings import Decode, Limits

PREPROCESSING = Preprocessing("bench", 288, "bilinear")
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "retina", "immunohistochemistry")
P3, ADOBE, PROPHOTO = profiles.DISPLAY_P3, profiles.ADOBE_RGB, profiles.PROPHOTO

STILL: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG": writers.saved("JPEG", quality=85),
    "JPEG, Display P3": writers.in_profile("JPEG", P3, quality=90),
    "JPEG, Adobe RGB": writers.in_profile("JPEG", ADOBE, 2.2, quality=90),
    "JPEG, ProPhoto": writers.in_profile("JPEG", PROPHOTO, 1.8, quality=90),
    "JPEG, EXIF orientation 6": writers.turned("JPEG", 6, quality=90),
    "JPEG, grey": writers.saved("JPEG", "L"),
    "PNG": writers.saved("PNG"),
    "PNG, 256 colours": lambda picture: writers.save(picture.quantize(256), "PNG"),
    "PNG, 16 bits": writers.sixteen("RGB", 2),
    "PNG, Display P3": writers.in_profile("PNG", P3),
    "GIF": lambda picture: writers.save(picture.quantize(256), "GIF"),
    "WebP": writers.saved("WEBP", quality=85),
    "WebP, Display P3": writers.in_profile("WEBP", P3, quality=90),
    "AVIF": writers.saved("AVIF", quality=75),
    "AVIF, Display P3": writers.in_profile("AVIF", P3, quality=75),
    "HEIC": writers.heic(),
    "HEIC, Display P3, as phones write it": lambda picture: writers.heic(
        icc_profile=profiles.rgb(P3)
    )(profiles.converted(picture, P3)),
    "BMP": writers.saved("BMP"),
    "TIFF": writers.saved("TIFF", compression="tiff_lzw"),
    "TIFF, Adobe RGB, as scanners write it": writers.in_profile("TIFF", ADOBE, 2.2),
    "TIFF, CMYK": writers.saved("TIFF", "CMYK", compression="tiff_lzw"),
    "ICO": writers.icons,
    "JPEG XL": writers.saved("JXL", lossless=False, distance=1.5),
}


def pictures(folders: list[Path], most: int) -> Iterator[Image.Image]:
    """Photographs without transparency."""
    if not folders:
        for name in PHOTOGRAPHS:
            yield Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        return
    for file in sorted(found(folders, "*.jpg"))[:most]:
        with Image.open(file) as image:
            yield image.convert("RGB")


def found(folders: list[Path], pattern: str) -> Iterator[Path]:
    for folder in folders:
        yield from folder.rglob(pattern)


def as_they_are(folders: list[Path], most: int) -> Iterator[tuple[str, bytes]]:
    """Files with transparency, or that move."""
    for file in sorted([*found(folders, "*.png"), *found(folders, "*.gif")])[:most]:
        with Image.open(file) as image:
            if getattr(image, "n_frames", 1) > 1:
                yield f"{image.format}, moving", file.read_bytes()
            elif image.has_transparency_data:
                yield f"{image.format}, transparent", file.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, nargs="*", default=[])
    parser.add_argument("--most", type=int, default=60, help="pictures of each sort")
    options = parser.parse_args()
    counts: defaultdict[str, list[int]] = defaultdict(list)
    refused = Counter[str]()
    with closing(Decoder(Decode(), Limits(), PREPROCESSING)) as decoder:

        def count(kind: str, data: bytes) -> None:
            try:
                counts[kind].append(len(decoder.prepare(data, nullcontext).looks))
            except DecodeError as error:
                refused[f"{kind}: {error.reason}"] += 1

        for picture in track([*pictures(options.images, options.most)], "photographs"):
            for kind, write in STILL.items():
                count(kind, write(picture))
        for kind, data in track([*as_they_are(options.images, options.most)], "others"):
            count(kind, data)
    show(counts, refused)


def show(counts: dict[str, list[int]], refused: Counter[str]) -> None:
    table = Table("Files", "Number", "Renditions, mean", "most")
    for kind, numbers in counts.items():
        table.add_row(kind, str(len(numbers)), f"{np.mean(numbers):.2f}", str(max(numbers)))
    still = [number for kind in STILL.keys() & counts.keys() for number in counts[kind]]
    table.add_section()
    table.add_row("All still, opaque ones", str(len(still)), f"{np.mean(still):.3f}", "")
    Console().print(table)
    for what, number in refused.items():
        print(f"refused: {what}, {number}")


if __name__ == "__main__":
    main()
