"""Weights of the SSCD network from the files in which Birder, Meta and others keep them.

A file is a TorchScript archive, a dict saved by torch, or safetensors; its content says which, for
Meta's `.pt` is any of the first two. Nothing in a file is ever run: names in a pickle resolve to
stand-ins of `torchscript`, or to torch's own allow-list. So a file needs no pinned digest to be
opened safely; whether it is the right file is for `zoo` to say.
"""

import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from zipfile import ZIP_STORED, ZipFile

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import safe_open
from torch import Tensor

from worker.descriptor import torchscript
from worker.descriptor.dialects import DIALECTS, Dialect, spoken
from worker.descriptor.network import ARCHITECTURES, GEM_POWER, Architecture, Network
from worker.errors import ModelError

SUFFIXES = (".pts", ".pt", ".pth", ".safetensors")

type Rgb = tuple[float, float, float]

_Side = Annotated[int, Field(ge=32, le=2048)]
_Positive = Annotated[float, Field(gt=0)]


class _Input(BaseModel):
    data_shape: tuple[int, Literal[3], _Side, _Side]


class _Signature(BaseModel):
    inputs: tuple[_Input]


class _RgbStats(BaseModel, allow_inf_nan=False):
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
    `interpolation` is the resize of those who name weights as the file does.
    """

    architecture: Architecture
    dims: int
    size: int
    mean: Rgb
    std: Rgb
    interpolation: Literal["bilinear", "bicubic"]
    weights: dict[str, Tensor]

    def network(self) -> Network:
        """The network with these weights, fp32, on the CPU."""
        return Network.with_weights(self.architecture, self.dims, self.weights)


@dataclass(frozen=True, slots=True)
class _Content:
    state: Mapping[str, Any]
    extras: Mapping[str, Any]
    powers: frozenset[float] = frozenset()


def read(path: Path) -> Checkpoint:
    """Read a `.pts`, `.pt`, `.pth` or `.safetensors` file.

    Raises ModelError, in one line, for a file that is damaged or holds anything but the weights of
    one of the known architectures.
    """
    if path.suffix not in SUFFIXES:
        raise ModelError(f"{path}: expected one of {', '.join(SUFFIXES)}, found {path.suffix!r}")
    try:
        content = _content(path)
        _check_pooling(path, content.powers)
        dialect, architecture, dims, weights = _recognise(path, content.state)
    except ModelError:
        raise
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path}: damaged, or no {path.suffix} file, or it holds more than weights, which is"
            " never loaded: save model.state_dict()"
        ) from None
    except Exception as error:  # noqa: BLE001 - damaged bytes raise whatever they like
        kind = type(error).__name__
        raise ModelError(f"{path}: damaged, or no {path.suffix} file ({kind})") from None
    size, mean, std = _facts(path, content.extras)
    return Checkpoint(architecture, dims, size, mean, std, dialect.interpolation, weights)


def _check_pooling(path: Path, powers: frozenset[float]) -> None:
    """Some files tell the exponent of their pooling, among others; those that do must have ours."""
    if powers and not any(math.isclose(power, GEM_POWER) for power in powers):
        found = ", ".join(f"{power:g}" for power in sorted(powers))
        raise ModelError(f"{path}: expected GeM pooling with p = {GEM_POWER:g}, found p = {found}")


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

_STATES = ("state", "state_dict")  # where Birder, and where most others put the weights
_COUNTER = "num_batches_tracked"  # of use in training only; not every exporter keeps it
_ABSENT = "nothing"
_MOST_DIMS = 8192
_MOST_SHOWN = 100  # characters of a name
_IMAGENET_CLASSES = 1000  # torchvision's own files: no descriptors, and pooled by the mean


def _recognise(
    path: Path, state: Mapping[str, Any]
) -> tuple[Dialect, Architecture, int, dict[str, Tensor]]:
    """Find the one architecture whose names and shapes are exactly those of `state`."""
    found = {
        name: value
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, Tensor) and not name.endswith(_COUNTER)
    }
    dialect = spoken(found)
    head = found[dialect.head] if dialect else None
    if dialect is None or head is None or head.ndim != 2:  # noqa: PLR2004 - a linear layer's
        heads = ", ".join(dict.fromkeys(d.head.removeprefix("backbone.") for d in DIALECTS))
        raise ModelError(
            f"{path}: expected SSCD weights with a matrix named one of {heads}, "
            f"found {len(found)} tensors"
            + (f", such as {min(found)[:_MOST_SHOWN]}" if found else "")
        )
    dims = head.shape[0]
    if not 1 <= dims <= _MOST_DIMS:
        raise ModelError(f"{path}: expected 1 to {_MOST_DIMS} dims, found {dims}")
    if dims == _IMAGENET_CLASSES:
        raise ModelError(f"{path}: expected descriptors, found the {dims} classes of ImageNet")
    differences = []
    for architecture in ARCHITECTURES:
        names, layout = _layout(architecture, dims, dialect)
        wrong = sorted(
            n for n in layout.keys() | found if layout.get(n, _ABSENT) != _kind(found.get(n))
        )
        if not wrong:
            weights = {names[name]: found[name].float() for name in found}
            if bad := [name for name in found if not weights[names[name]].isfinite().all()]:
                raise ModelError(f"{path}: expected finite weights, found others in {min(bad)}")
            return dialect, architecture, dims, weights
        first = wrong[0]
        kinds = f"{_kind(found.get(first))} instead of {layout.get(first, _ABSENT)}"
        difference = f"{first[:_MOST_SHOWN]}: {kinds}"
        differences.append((len(wrong), architecture.name, difference))
    _, closest, difference = min(differences)
    raise ModelError(
        f"{path}: expected the weights of {closest} by {dialect.name} names, found {difference}"
    )


def _layout(
    architecture: Architecture, dims: int, dialect: Dialect
) -> tuple[dict[str, str], dict[str, str]]:
    """The dialect's name of every weight to torchvision's, and to its kind."""
    with torch.device("meta"):
        weights = Network(architecture, dims).trunk.state_dict()
    names = {dialect.theirs(name): name for name in weights if not name.endswith(_COUNTER)}
    return names, {theirs: f"float {list(weights[ours].shape)}" for theirs, ours in names.items()}


def _kind(tensor: Tensor | None) -> str:
    """Whether its values are floats, and its shape, as in `float [64, 3, 7, 7]`."""
    if tensor is None:
        return _ABSENT
    if tensor.device.type != "cpu":
        return f"{tensor.device} {list(tensor.shape)}"
    if tensor.layout != torch.strided:
        return f"{tensor.layout} {list(tensor.shape)}"
    return f"{'float' if tensor.is_floating_point() else tensor.dtype} {list(tensor.shape)}"


# -- reading --------------------------------------------------------------------------------------


def _content(path: Path) -> _Content:
    """Read the file as what its first bytes say that it is."""
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"PK"):
        with ZipFile(path) as archive:
            if torchscript.is_torchscript(archive):
                return _read_torchscript(path, archive)
            torchscript.checked_names(archive)
            if any(entry.compress_type != ZIP_STORED for entry in archive.infolist()):
                # Torch never compresses what `torch.save` writes: nothing is larger than the file.
                raise ValueError("an entry is compressed")
        return _read_torch(path)
    if start.endswith(b"{"):  # after eight bytes of length, a JSON object
        return _read_safetensors(path)
    return _read_torch(path)  # as torch saved before it used zip


def _read_torch(path: Path) -> _Content:
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise ModelError(f"{path}: expected a dict, found {type(content).__name__}")
    name = next((one for one in _STATES if one in content), None)
    state = content[name] if name else content
    if not isinstance(state, Mapping):
        raise ModelError(f"{path}: expected a dict as state, found {type(state).__name__}")
    return _Content(state, {name: content[name] for name in _Facts.model_fields if name in content})


def _read_safetensors(path: Path) -> _Content:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    extras = {n: json.loads(metadata[n]) for n in _Facts.model_fields if n in metadata}
    return _Content(state, extras)


def _read_torchscript(path: Path, archive: ZipFile) -> _Content:
    scripted = torchscript.read(archive, tuple(_Facts.model_fields))
    if scripted.frozen:
        raise ModelError(
            f"{path}: expected weights by name, found a frozen TorchScript archive, which has them "
            "as constants of its code: save it without torch.jit.freeze"
        )
    return _Content(scripted.state, scripted.extras, scripted.powers)
