"""TorchScript archives, read for their tensors alone: no code of theirs is run or imported."""

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch
from torch import Tensor

_MOST_ATTRIBUTES = 100_000  # the largest network known here has 1,000 modules of 10 each
_MOST_CODE = 16 * 1024 * 1024
_POWER_ATTRIBUTES = ("p", "pooling_param")  # of Birder's and of SSCD's pooling
_POWER_IN_CODE = re.compile(r"torch\.pow\((?:[^(),]|\([^()]*\))+, ([0-9][0-9.e+-]*)\)")


@dataclass(frozen=True, slots=True)
class Scripted:
    """What an archive holds. `state` has tensors by their dotted names, as `state_dict` has them.

    `powers` are the constant exponents that it names: attributes of its modules, if scripted, and
    numbers in its code, if traced. `frozen` says that its weights are constants of its code.
    """

    state: dict[str, Tensor]
    extras: dict[str, Any]
    powers: frozenset[float]
    frozen: bool


def is_torchscript(archive: ZipFile) -> bool:
    """Whether torch wrote it by `torch.jit.save`; `torch.save` writes no constants."""
    return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read(archive: ZipFile, extras: tuple[str, ...]) -> Scripted:
    """Read the tensors, and those of the extra files (JSON) named in `extras` that are there.

    Raises ValueError or whatever damaged bytes make the parts raise.
    """
    names = unique_names(archive)
    root = archive.namelist()[0].split("/")[0]
    state: dict[str, Tensor] = {}
    powers = set(_powers_in_code(archive))
    for name, value in _attributes(_ModuleReader(archive, root).load()):
        if isinstance(value, Tensor):
            if name in state:
                raise ValueError(f"two tensors are named {name}")
            state[name] = value
        elif isinstance(value, float) and name.rpartition(".")[2] in _POWER_ATTRIBUTES:
            powers.add(value)
    found = {
        name: json.loads(_stored(archive, f"{root}/extra/{name}"))
        for name in extras
        if f"{root}/extra/{name}" in names
    }
    frozen = not state and any(name.startswith(f"{root}/constants/") for name in names)
    return Scripted(state, found, frozenset(powers), frozen)


def unique_names(archive: ZipFile) -> set[str]:
    """The names of its entries. Raises ValueError if two of them have the same."""
    names = archive.namelist()
    if len(set(names)) != len(names):
        raise ValueError("two entries have the same name")
    return set(names)


def _stored(archive: ZipFile, name: str) -> bytes:
    """An entry's bytes. Torch never compresses tensors, so no entry is larger than the file."""
    entry = archive.getinfo(name)
    if entry.compress_type != ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return archive.read(entry)


def _powers_in_code(archive: ZipFile) -> Iterator[float]:
    code = [entry for entry in archive.infolist() if entry.filename.endswith(".py")]
    if sum(entry.file_size for entry in code) > _MOST_CODE:  # code is compressed
        raise ValueError(f"more than {_MOST_CODE} bytes of code")
    for entry in code:
        for number in _POWER_IN_CODE.findall(archive.read(entry).decode()):
            yield float(number)


class _Module:
    """Stand-in for any scripted class: remembers its attributes."""

    attributes: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


def _attributes(root: _Module) -> Iterator[tuple[str, Any]]:
    """All that is no module, under its dotted name.

    The number is bounded: modules that share modules could make it grow without end.
    """
    seen = 0
    waiting = [("", root)]
    while waiting:
        prefix, module = waiting.pop()
        for name, value in module.attributes.items():
            seen += 1
            if seen > _MOST_ATTRIBUTES:
                raise ValueError(f"more than {_MOST_ATTRIBUTES} attributes")
            if isinstance(value, _Module):
                waiting.append((f"{prefix}{name}.", value))
            else:
                yield f"{prefix}{name}", value


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
        self._storages: dict[str, Tensor] = {}

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
        if key not in self._storages:  # however often it is asked for, it is in memory once
            data = bytearray(_stored(self._archive, f"{self._root}/data/{key}"))
            self._storages[key] = torch.frombuffer(data, dtype=dtype)
        return self._storages[key]


def _tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    """A tensor within its storage; torch checks the bounds."""
    return storage.as_strided(size, stride, offset)


def _nothing(*_: Any) -> None:
    """What all other names in a TorchScript archive stand for."""
