"""What a model's file is: its digest, who vouches for it, and what it was recognised as."""

from dataclasses import dataclass
from pathlib import Path

from worker.descriptor import checkpoints, embedders, zoo
from worker.settings import ModelSettings


@dataclass(frozen=True, slots=True)
class Identity:
    """A file that may be loaded.

    `name` is empty for a file that the catalogue does not have. `pinned` says who told the digest
    before the file was read, and is None if nobody did. `mean` and `std` are for RGB in 0..1, and
    None for ONNX files, which normalise inside.
    """

    name: str
    path: Path
    sha256: str
    pinned: str | None
    architecture: str
    dims: int
    size: int
    preprocessing: str
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None


def identify(path: Path, settings: ModelSettings) -> Identity:
    """Verify the digest, then read the file as the worker would. Raises ModelError."""
    pin = zoo.pin(path, settings)
    origin = pin.origin if pin else None
    sha256 = zoo.verify(path, settings)
    entry = zoo.CATALOGUE.get(settings.name)
    name = entry.name if entry else ""
    if path.suffix == ".onnx":
        plain = {"device": "cpu", "precision": "auto", "compile": False}
        embedder = embedders.OnnxEmbedder(path, sha256, settings.model_copy(update=plain))
        architecture = entry.architecture if entry else "an ONNX graph"
        made = embedder.preprocessing
        dims = embedder.model.dims
        return Identity(
            name, path, sha256, origin, architecture, dims, made.size, made.name, None, None
        )
    found = checkpoints.read(path)
    embedders.check_catalogue(path, settings.name, found)
    made = zoo.preprocessing_of(settings.name, found.interpolation, found.size)
    return Identity(
        name,
        path,
        sha256,
        origin,
        found.architecture.name,
        found.dims,
        found.size,
        made.name,
        found.mean,
        found.std,
    )


def settings_of_name(name: str, settings: ModelSettings) -> ModelSettings:
    """The settings for the catalogue's file of that name; `model.sha256` is for its own alone."""
    sha256 = settings.sha256 if settings.name == name and settings.path is None else None
    return settings.model_copy(update={"name": name, "path": None, "sha256": sha256})


def settings_of_file(path: Path, settings: ModelSettings) -> ModelSettings:
    """The settings for any file: `model`'s if it is that one, else by its place, or by its digest.

    Raises ModelError if it cannot be read.
    """
    if settings.path is not None and settings.path.resolve() == path.resolve():
        return settings
    for entry in zoo.CATALOGUE.values():
        place = zoo.expected_file(entry, settings.cache)
        if place is not None and place.resolve() == path.resolve():
            return settings_of_name(entry.name, settings)
    digest = zoo.digest(path)
    name = next((entry.name for entry in zoo.CATALOGUE.values() if entry.sha256 == digest), "")
    return settings.model_copy(update={"name": name, "path": path, "sha256": None})
