"""NumPy's .npz files from outside: no pickles, nothing compressed, no more than the file holds."""

import math
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

type Arrays = dict[str, npt.NDArray[np.generic]]


def read(path: Path, names: Collection[str]) -> Arrays:
    """Those arrays of a file that have one of the names; what else it has is left alone.

    Memory is bounded by the file's size. Raises ValueError for what cannot be read, and OSError.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as packed:
            parts = [one for one in packed.infolist() if one.filename.endswith(".npy")]
            chosen = {one.filename.removesuffix(".npy"): one for one in parts}
            return {
                name: _array(packed, chosen[name], name, size) for name in names if name in chosen
            }
    except (KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"it cannot be read: {type(error).__name__}") from None


def _array(
    packed: zipfile.ZipFile, part: zipfile.ZipInfo, name: str, size: int
) -> npt.NDArray[np.generic]:
    if part.compress_type != zipfile.ZIP_STORED:  # it may unpack to anything
        raise ValueError(f"{name}: it is compressed: numpy.savez writes it as it is")
    with packed.open(part) as member:
        shape, dtype = _header(member, name)
        if math.prod(shape) * dtype.itemsize > min(size, part.file_size):
            raise ValueError(f"{name}: more than the file holds")
    with packed.open(part) as member:
        found: npt.NDArray[np.generic] = np.lib.format.read_array(member, allow_pickle=False)
    return found


def _header(member: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    reader = readers.get(np.lib.format.read_magic(member))
    if reader is None:
        raise ValueError(f"{name}: another version of .npy")
    shape, _, dtype = reader(member)
    if dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"{name}: of a kind that is not read")
    return shape, dtype
