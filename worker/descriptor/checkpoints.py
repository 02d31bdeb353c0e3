"""Weights of the SSCD network from the files in which Birder publishes them.

`.pts` is a TorchScript archive, `.pt` a dict saved by torch, `.safetensors` what it says. Nothing
in a file is ever run: TorchScript's code is not looked at, names in a pickle resolve to stand-ins
of this module (`.pts`) or to torch's own allow-list (`.pt`). So a file needs no pinned digest to
be opened safely; whether it is the right file is for `zoo` to say.
"""

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal
from zipfile import ZIP_STORED, ZipFile

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import safe_open
from torch import Tensor

from worker.descriptor.network import ARCHITECTURES, Architecture, Network
from worker.errors import ModelError

type Rgb = tuple[float, float, float]

_Side = Annotated[int, Field(ge=32, le=2048)]
_Positive = Annotated[float, Field(gt=0)]


class _Input(BaseModel):
    data_shape: tuple[int, Literal[3], _Side, _Side]


class _Signature(BaseModel):
    inputs: tuple[_Input]


class _RgbStats(BaseModel):
    mean: tuple[float, float, float]
    std: tuple[_Positive, _Positive, _Positive]


class _Facts(BaseModel):
    """What Birder writes next to the weights. The defaults are SSCD's own."""

    signature: _Signature = _Signature(inputs=(_Input(data_shape=(0, 3, 320, 320)),))
    rgb_stats: _RgbStats = _RgbStats(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A recognised file. `weights` are float32, named as in torchvision's `ResNet`.

    `size` is the side of the square input; `mean` and `std` are for values in 0..1, RGB.
    """

    architecture: Architecture
    dims: int
    size: int
    mean: Rgb
    std: Rgb
    weights: dict[str, Tensor]

    def network(self) -> Network:
        """The network with these weights, fp32, on the CPU."""
        return Network.with_weights(self.architecture, self.dims, self.weights)


def read(path: Path) -> Checkpoint:
    """Read a `.pts`, `.pt`, `.pth` or `.safetensors` file.

    Raises ModelError, in one line, for a file that is damaged or holds anything but the weights of
    one of the known architectures.
    """
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise ModelError(f"{path}: expected one of {', '.join(_READERS)}, found {path.suffix!r}")
    try:
        state, extras = reader(path)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - damaged bytes raise whatever they like
        kind = type(error).__name__
        raise ModelError(f"{path}: damaged, or no {path.suffix} file ({kind})") from None
    architecture, dims, weights = _recognise(path, state)
    size, mean, std = _facts(path, extras)
    return Checkpoint(architecture, dims, size, mean, std, weights)


def _facts(path: Path, extras: Mapping[str, Any]) -> tuple[int, Rgb, Rgb]:
    try:
        facts = _Facts.model_validate(dict(extras))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"{path}: {where}: {first['msg']}") from None
    _, _, height, width = facts.signature.inputs[0].data_shape
    if height != width:
        raise ModelError(f"{path}: expected a square input, found {height}x{width}")
    return height, facts.rgb_stats.mean, facts.rgb_stats.std


# -- recognising ----------------------------------------------------------------------------------

_OUTSIDE = {"conv1": "stem.0.0", "bn1": "stem.0.1", "fc": "classifier"}
_IN_BLOCK = {
    "conv1": "block1.0.0",
    "bn1": "block1.0.1",
    "conv2": "block1.1.0",
    "bn2": "block1.1.1",
    "conv3": "block1.2",
    "bn3": "block1.3",
    "downsample": "block2",
}
_COUNTER = "num_batches_tracked"  # of use in training only; not every exporter keeps it
_ABSENT = "nothing"


def birder_name(name: str) -> str:
    """Birder's name of what torchvision's `ResNet` calls `name`."""
    module, _, rest = name.partition(".")
    if not module.startswith("layer"):
        return f"{_OUTSIDE[module]}.{rest}"
    block, part, leaf = rest.split(".", 2)
    return f"body.{module.replace('layer', 'stage')}.{block}.{_IN_BLOCK[part]}.{leaf}"


def _recognise(path: Path, state: Mapping[str, Any]) -> tuple[Architecture, int, dict[str, Tensor]]:
    """Find the one architecture whose names and shapes are exactly those of `state`."""
    found = {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor) and not name.endswith(_COUNTER)
    }
    # Birder's SSCD wraps its network as `backbone`; published on its own it has no prefix.
    prefix = "backbone." if "backbone.classifier.weight" in found else ""
    head = found.get(f"{prefix}classifier.weight")
    if head is None or head.ndim != 2:  # noqa: PLR2004 - a linear layer's weight is a matrix
        raise ModelError(
            f"{path}: expected Birder's SSCD weights with a matrix classifier.weight, "
            f"found {len(found)} tensors" + (f", such as {min(found)}" if found else "")
        )
    dims = head.shape[0]
    differences = []
    for architecture in ARCHITECTURES:
        names, layout = _layout(architecture, dims, prefix)
        wrong = sorted(
            n for n in layout.keys() | found if layout.get(n, _ABSENT) != _kind(found.get(n))
        )
        if not wrong:
            return architecture, dims, {names[name]: found[name].float() for name in found}
        first = wrong[0]
        difference = f"{first}: {_kind(found.get(first))} instead of {layout.get(first, _ABSENT)}"
        differences.append((len(wrong), architecture.name, difference))
    _, closest, difference = min(differences)
    raise ModelError(f"{path}: expected the weights of {closest}, found {difference}")


def _layout(
    architecture: Architecture, dims: int, prefix: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Birder's name of every weight to torchvision's, and to its kind."""
    with torch.device("meta"):
        weights = Network(architecture, dims).trunk.state_dict()
    names = {prefix + birder_name(name): name for name in weights if not name.endswith(_COUNTER)}
    return names, {theirs: _kind(weights[ours]) for theirs, ours in names.items()}


def _kind(tensor: Tensor | None) -> str:
    """Whether its values are floats, and its shape, as in `float [64, 3, 7, 7]`."""
    if tensor is None:
        return _ABSENT
    return f"{'float' if tensor.is_floating_point() else tensor.dtype} {list(tensor.shape)}"


# -- reading --------------------------------------------------------------------------------------


def _read_torch(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise ModelError(f"{path}: expected a dict, found {type(content).__name__}")
    state = content.get("state", content)
    return state, {name: content[name] for name in _Facts.model_fields if name in content}


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    return state, {n: json.loads(metadata[n]) for n in _Facts.model_fields if n in metadata}


def _read_torchscript(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    with ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        reader = _ModuleReader(archive, root)
        state = dict(_flatten(reader.load()))
        names = set(archive.namelist())
        extras = {
            name: json.loads(_stored(archive, f"{root}/extra/{name}"))
            for name in _Facts.model_fields
            if f"{root}/extra/{name}" in names
        }
    return state, extras


_READERS: dict[str, Callable[[Path], tuple[Mapping[str, Any], Mapping[str, Any]]]] = {
    ".pts": _read_torchscript,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".safetensors": _read_safetensors,
}


def _stored(archive: ZipFile, name: str) -> bytes:
    """An entry's bytes. Torch never compresses them, so no entry is larger than the file."""
    entry = archive.getinfo(name)
    if entry.compress_type != ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return archive.read(entry)


class _Module:
    """Stand-in for any scripted class: remembers its attributes."""

    attributes: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
}


class _ModuleReader(pickle.Unpickler):
    """Reads a TorchScript archive's tree of modules without importing or calling what it names.

    Scripted classes become `_Module`, storages their dtype, tensors are cut from their storage
    here; every other name stands for a function that returns None.
    """

    def __init__(self, archive: ZipFile, root: str) -> None:
        super().__init__(BytesIO(_stored(archive, f"{root}/data.pkl")))
        self._archive = archive
        self._root = root

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".", maxsplit=1)[0] == "__torch__":
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        return _nothing

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, *_ = pid
        data = bytearray(_stored(self._archive, f"{self._root}/data/{key}"))
        return torch.frombuffer(data, dtype=dtype)


def _tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    """A tensor within its storage; torch checks the bounds."""
    return storage.as_strided(size, stride, offset)


def _nothing(*_: Any) -> None:
    """What all other names in a TorchScript archive stand for."""


def _flatten(module: _Module, prefix: str = "") -> list[tuple[str, Tensor]]:
    """The tensors of a module and its submodules under their dotted names."""
    tensors: list[tuple[str, Tensor]] = []
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            tensors.append((prefix + name, value))
        elif isinstance(value, _Module):
            tensors.extend(_flatten(value, f"{prefix}{name}."))
    return tensors
