"""Models and pictures for `bench describe`; a network may have random weights."""

from dataclasses import dataclass
from pathlib import Path

from worker.cli.embed import walk
from worker.descriptor import checkpoints, zoo
from worker.descriptor.checkpoints import Checkpoint
from worker.descriptor.embedders import OnnxEmbedder
from worker.descriptor.network import ARCHITECTURES, Network
from worker.errors import DecodeError, ModelError, StartupError
from worker.image.decode import decode
from worker.settings import Limits, ModelSettings, Settings

RANDOM = "random"
MOST = 60
"""Pictures of a folder that are measured."""
_DIMS = {"resnext101_32x4d": 1024, "resnet50": 512}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The network of the card's loop where the model is a graph, which has no fp32 form of its own.
_BESIDE_GRAPHS = "resnet50"
_INT8 = "sscd_disc_mixup_int8"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to measure: a network, or a graph with the network that it is compared with.

    `weights` is a sha256, or `random`.
    """

    name: str
    weights: str
    checkpoint: Checkpoint
    graph: OnnxEmbedder | None = None


def of_model(settings: ModelSettings) -> Subject:
    """A model that has its file. Raises ModelError."""
    path = zoo.locate(settings)
    sha256 = zoo.verify(path, settings)
    if path.suffix == ".onnx":
        graph = OnnxEmbedder(path, sha256, settings)
        return Subject(settings.name, sha256, _random(_BESIDE_GRAPHS), graph)
    return Subject(settings.name, sha256, checkpoints.read(path))


def of_architecture(name: str) -> Subject:
    """A network with random weights: as fast as any other. Raises ModelError."""
    return Subject(name, RANDOM, _random(name))


def usual(settings: Settings) -> list[Subject]:
    """What is measured if nothing is named: the model in use, and the int8 graph if it is there.

    The default model without its file has random weights; one that the settings name must be there.
    """
    if "model" in settings.model_fields_set:
        return [of_model(settings.model)]
    subjects = []
    for name in (settings.model.name, _INT8):
        entry = zoo.CATALOGUE[name]
        path = zoo.expected_file(entry, settings.model.cache)
        if path is not None and path.is_file():
            subjects.append(of_model(settings.model.model_copy(update={"name": name})))
        elif entry.package is None:
            subjects.append(of_architecture(entry.architecture))
    return subjects


def of_folder(folder: Path, limits: Limits) -> list[bytes]:
    """The pictures of a folder that can be decoded, `MOST` at most, evenly over their names.

    Raises StartupError where there is none.
    """
    files = list(walk([folder]))
    step = max(1, -(-len(files) // MOST))
    encoded = [file.read_bytes() for file in files[::step]]
    found = [data for data in encoded if _decodes(data, limits)]
    if not found:
        raise StartupError(f"--images {folder}: there is no picture")
    return found


def _decodes(data: bytes, limits: Limits) -> bool:
    try:
        decode(data, limits)
    except DecodeError:
        return False
    return True


def _random(name: str) -> Checkpoint:
    architecture = next((one for one in ARCHITECTURES if one.name == name), None)
    if architecture is None:
        known = ", ".join(one.name for one in ARCHITECTURES)
        raise ModelError(f"--architecture {name}: expected one of {known}")
    network = Network.random(architecture, _DIMS[name])
    weights = network.trunk.state_dict()
    return Checkpoint(architecture, _DIMS[name], 320, _MEAN, _STD, "bicubic", weights)
