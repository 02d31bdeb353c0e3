"""Models and pictures for `bench describe`; a network may have random weights."""

from contextlib import closing, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from worker.descriptor import checkpoints, zoo
from worker.descriptor.checkpoints import Checkpoint
from worker.descriptor.embedders import OnnxEmbedder, check_catalogue
from worker.descriptor.network import ARCHITECTURES, Network
from worker.errors import ModelError, StartupError, Unscreenable
from worker.image.decode import kind_of
from worker.image.decoder import Decoder
from worker.image.files import bytes_of, walk
from worker.image.formats import FORMATS
from worker.records import Preprocessing
from worker.settings import ModelSettings, Settings, Views

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

    `settings` are those of the model itself, whatever is configured. `weights` is a sha256, or
    `random`.
    """

    settings: ModelSettings
    weights: str
    checkpoint: Checkpoint
    graph: OnnxEmbedder | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """The model's, whichever way it is run."""
        if self.graph is not None:
            return self.graph.preprocessing
        found = self.checkpoint
        return zoo.preprocessing_of(self.settings.name, found.interpolation, found.size)


def of_model(settings: ModelSettings) -> Subject:
    """A model that has its file. Raises ModelError."""
    path = zoo.locate(settings)
    sha256 = zoo.verify(path, settings)
    if path.suffix == ".onnx":
        graph = OnnxEmbedder(path, sha256, settings)
        return Subject(settings, sha256, _random(_BESIDE_GRAPHS), graph)
    checkpoint = checkpoints.read(path)
    check_catalogue(path, settings.name, checkpoint)
    return Subject(settings, sha256, checkpoint)


def of_architecture(name: str, settings: ModelSettings) -> Subject:
    """A network with random weights: as fast as any other. Raises ModelError."""
    return Subject(settings.model_copy(update={"name": name}), RANDOM, _random(name))


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
            subjects.append(of_architecture(entry.architecture, settings.model))
    return subjects


def of_folder(folder: Path, settings: Settings) -> list[bytes]:
    """The pictures of a folder that both sides can read, `MOST` at most, evenly over their names.

    Raises StartupError where there is none.
    """
    files = list(walk([folder]))
    step = max(1, -(-len(files) // MOST))
    one = settings.decode.model_copy(update={"workers": 1})  # files are read in turn
    anyones = zoo.preprocessing("bilinear", 320)
    with closing(Decoder(one, settings.limits, anyones, Views(renditions=1))) as decoder:
        read = [_read(file, settings, decoder) for file in files[::step]]
    found = [data for data in read if data is not None]
    if not found:
        raise StartupError(f"--images {folder}: there is no JPEG, PNG, GIF or WebP that is whole")
    return found


def _read(file: Path, settings: Settings, decoder: Decoder) -> bytes | None:
    """A file that the worker and the card's loop can read.

    The loop decodes in this process, so no format that has to be decoded in one of its own.
    """
    try:
        data = bytes_of(file, settings.limits)
        decoder.prepare(data, nullcontext)
    except Unscreenable:
        return None
    if FORMATS[kind_of(data)].sandboxed:
        return None
    try:
        Image.open(BytesIO(data)).convert("RGB")
    except Exception:  # noqa: BLE001 - the readers raise nearly everything there is
        return None
    return data


def _random(name: str) -> Checkpoint:
    architecture = next((one for one in ARCHITECTURES if one.name == name), None)
    if architecture is None:
        known = ", ".join(one.name for one in ARCHITECTURES)
        raise ModelError(f"--architecture {name}: expected one of {known}")
    network = Network.random(architecture, _DIMS[name])
    weights = network.trunk.state_dict()
    return Checkpoint(architecture, _DIMS[name], 320, _MEAN, _STD, "bicubic", weights)
