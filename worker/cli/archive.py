"""NumPy files of rows that come batch by batch, and never lie in memory as a whole."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import IO, Any, Self
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import numpy.typing as npt

from worker.errors import CopysieveError

type Rows = npt.NDArray[np.float32]


class Archive:
    """Arrays that grow in files beside `path`, which `finish` makes into a .npz or .npy file.

    Used as a context manager, which removes what is left: so `path` is there whole, or not at all.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
        self._files: dict[str, IO[bytes]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()
        self._folder.cleanup()

    def reserve(self, batch: Mapping[str, Rows], pictures: int) -> None:
        """See that there is room for `pictures` rows like those of `batch`.

        Raises CopysieveError where there is not. Everything is on disk twice for a moment.
        """
        a_row = sum(rows[0].nbytes for rows in batch.values())
        needed, free = 2 * a_row * pictures, shutil.disk_usage(self._path.parent).free
        if needed > free:
            raise CopysieveError(
                f"{self._path}: {pictures} pictures of {a_row:,} bytes take {needed:,} bytes while"
                f" they are written, {free:,} are free there"
            )

    def append(self, batch: Mapping[str, Rows]) -> None:
        """Float32 rows [n, ...] of each array; in all calls the same names and shapes of a row."""
        for name, rows in batch.items():
            if name not in self._files:
                self._files[name] = (Path(self._folder.name) / name).open("w+b")
                self._shapes[name] = (0, *rows.shape[1:])
            count, *row = self._shapes[name]
            self._files[name].write(np.ascontiguousarray(rows).data)
            self._shapes[name] = (count + len(rows), *row)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Write `path`. A .npz file has `facts` as arrays of their own beside the rows."""
        whole = Path(self._folder.name) / "whole"
        if self._path.suffix == ".npy":
            (name,) = self._files
            with whole.open("wb") as out:
                self._write(name, out)
        else:
            with ZipFile(whole, "w", ZIP_STORED) as archive:
                for name in self._files:
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as out:
                        self._write(name, out)
                for name, fact in facts.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as out:
                        np.lib.format.write_array(out, np.asanyarray(fact), allow_pickle=False)
        whole.replace(self._path)

    def _write(self, name: str, out: IO[bytes]) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)),
            "fortran_order": False,
            "shape": self._shapes[name],
        }
        np.lib.format.write_array_header_1_0(out, header)
        rows = self._files[name]
        rows.seek(0)
        shutil.copyfileobj(rows, out, 1 << 20)
