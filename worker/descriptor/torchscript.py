"""TorchScript archives, read for their tensors alone: no code of theirs is run or imported."""

import json
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar
from zipfile import ZIP_STORED, ZipFile

import torch
from torch import Tensor

_MOST_ATTRIBUTES = 100_000  # the largest network known here has 1,000 modules of 10 each
_MOST_NAME = 1000  # characters of a dotted name
_MOST_CODE = 16 * 1024 * 1024
_MOST_TREE = 4 * 1024 * 1024  # bytes of data.pkl; the largest network known here has 72 kB
_POWER_ATTRIBUTES = ("p", "pooling_param")  # of Birder's and of SSCD's pooling
_POWER_IN_CODE = re.compile(r"torch\.pow\((?:[^(),]|\([^()]*+\))++, ([0-9][0-9.e+-]*)\)")


@dataclass(frozen=True, slots=True)
class Scripted:
    """What an archive holds. `state` has tensors by their dotted names, as `state_dict` has them.

    `powers` are the constant exponents that it names: attributes of its modules, if scripted, else
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
    names = checked_names(archive)
    root = archive.namelist()[0].split("/")[0]
    state: dict[str, Tensor] = {}
    told: set[float] = set()
    for name, value in _attributes(_ModuleReader(archive, root).load()):
        if isinstance(value, Tensor):
            if name in state:
                raise ValueError(f"two tensors are named {name}")
            state[name] = value
        elif type(value) in (int, float) and name.rpartition(".")[2] in _POWER_ATTRIBUTES:
            told.add(float(value))
    found = {
        name: json.loads(_stored(archive, f"{root}/extra/{name}"))
        for name in extras
        if f"{root}/extra/{name}" in names
    }
    frozen = not state and any(name.startswith(f"{root}/constants/") for name in names)
    return Scripted(state, found, frozenset(told or _powers_in_code(archive)), frozen)


def checked_names(archive: ZipFile) -> set[str]:
    """The names of a file's entries. Raises ValueError if two share their name, or their bytes.

    Entries that overlap would ask for any multiple of the file's size.
    """
    names = archive.namelist()
    if len(set(names)) != len(names):
        raise ValueError("two entries have the same name")
    stored = (entry for entry in archive.infolist() if entry.compress_type == ZIP_STORED)
    if sum(entry.file_size for entry in stored) > Path(str(archive.filename)).stat().st_size:
        raise ValueError("its entries are larger than the file")
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

    attributes: Mapping[Any, Any] = {}


def _attributes(root: _Module) -> Iterator[tuple[str, Any]]:
    """All that is no module, under its dotted name.

    Their number and names are bounded: modules that share modules could make them grow without end.
    """
    seen = 0
    waiting = [("", root)]
    while waiting:
        prefix, module = waiting.pop()
        for name, value in module.attributes.items():
            seen += 1
            if seen > _MOST_ATTRIBUTES:
                raise ValueError(f"more than {_MOST_ATTRIBUTES} attributes")
            if not isinstance(name, str) or len(prefix) + len(name) > _MOST_NAME:
                raise ValueError(f"a name is no text of {_MOST_NAME} characters at most")
            if isinstance(value, _Module):
                waiting.append((f"{prefix}{name}.", value))
            else:
                yield f"{prefix}{name}", value


_PROTOCOL = 2  # of the pickles that torch writes
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
}


class _ModuleReader(pickle._Unpickler):  # noqa: SLF001 - the one in C grows with memo indices
    """Reads a TorchScript archive's tree of modules without importing or calling what it names.

    Scripted classes become `_Module`, storages their dtype, tensors are cut from their storage
    here; every other name stands for a function that returns None. Only the opcodes of protocol 2
    are known, which torch writes: later ones ask for memory by a number.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        ord(code.code): pickle._Unpickler.dispatch[ord(code.code)]  # noqa: SLF001 - as above
        for code in pickletools.opcodes
        if code.proto <= _PROTOCOL
    }
    stack: list[Any]

    def __init__(self, archive: ZipFile, root: str) -> None:
        if archive.getinfo(f"{root}/data.pkl").file_size > _MOST_TREE:
            raise ValueError(f"data.pkl has more than {_MOST_TREE} bytes")
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

    def _build(self) -> None:
        """Give a module its attributes; all else that a file could change is everybody's."""
        state = self.stack.pop()
        module = self.stack[-1]
        if not isinstance(module, _Module):
            raise TypeError(f"expected a module, found {type(module).__name__}")
        module.attributes = state if isinstance(state, dict) else {}

    dispatch[pickle.BUILD[0]] = _build

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
