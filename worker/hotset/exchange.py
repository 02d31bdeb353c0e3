"""Files that hold a hot set: what `refs export` writes and `refs import` reads, by their suffix.

    .jsonl, .jsonl.gz   a header, then a line for each reference, its descriptors in base64, and
                        a last line with their number
    .npz                all in a few arrays; read and written as a whole
    .parquet            a row for each reference; needs the extra copysieve[parquet]

All say the same: the model, the banks, and of each reference its row, the names of its views, and
its descriptors in fp16, little-endian. So a set is the same after any of them.
"""

import base64
import binascii
import gzip
import json
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import batched, count
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from worker.errors import StoreError
from worker.events import Sha256
from worker.hotset import layout
from worker.hotset.types import Bank, Descriptors, Reference, Strict, Text
from worker.records import Model

FORM: Literal[1] = 1
AT_ONCE = 4096
_LINE_BYTES = 1 << 20
_MEMBERS = ("header", "references", "views", "ends", "descriptors")
_METADATA = b"copysieve"

type Described = tuple[Reference, Descriptors]


class BadFile(StoreError):
    """A file of references cannot be read; names the record and what is wrong, not its content."""


class _Model(Strict):
    name: Text
    sha256: Sha256
    dims: int


class Header(Strict):
    """What a file begins with."""

    copysieve: Literal[1]
    model: _Model
    banks: tuple[Bank, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """A reference as a file has it: its row (JSON), names of views with commas, fp16 rows."""

    row: bytes
    views: str
    rows: bytes


class Archive:
    """A file of references that is there. Raises BadFile where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._format = _format_of(path)
        header = self._format.header(path)
        try:
            self.header = Header.model_validate_json(header)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BadFile(f"{path}: not a file of references: {where}: {first['msg']}") from None
        told = self.header.model
        self.model = Model(told.name, told.sha256, told.dims, preprocessing="")

    def references(self) -> Iterator[Described]:
        """All of them, in order; each is held to the rules of what comes from outside."""
        banks, seen = {bank.name for bank in self.header.banks}, set[str]()
        for number, record in enumerate(self._format.records(self.path), 1):
            try:
                reference = Reference.model_validate_json(record.row)
                raw = record.views.encode() + b"\n" + record.rows
                descriptors = layout.read_descriptors(reference.reference_id, raw, self.model.dims)
            except ValidationError as error:
                first = error.errors(include_url=False, include_context=False, include_input=False)
                field = ".".join(map(str, first[0]["loc"])) or first[0]["type"]
                raise BadFile(f"{self.path}: record {number}: {field}") from None
            except layout.Unusable as error:
                raise BadFile(f"{self.path}: record {number}: descriptors: {error.field}") from None
            if reference.bank not in banks:
                raise BadFile(f"{self.path}: record {number}: bank: not among the file's banks")
            if reference.reference_id in seen:
                raise BadFile(f"{self.path}: record {number}: reference_id: it came before")
            seen.add(reference.reference_id)
            yield reference, descriptors


def write(path: Path, model: Model, banks: Sequence[Bank], references: Iterable[Described]) -> int:
    """Write a file; it is there as a whole or not at all, and only its owner can read it.

    Raises BadFile for a suffix that is none of a format's, and OSError.
    """
    chosen = _format_of(path)
    told = _Model(name=model.name, sha256=model.sha256, dims=model.dims)
    header = Header(copysieve=FORM, model=told, banks=tuple(banks)).model_dump_json().encode()
    records = (
        Record(
            layout.write_reference(reference),
            ",".join(described.views),
            np.ascontiguousarray(described.rows, dtype="<f2").tobytes(),
        )
        for reference, described in references
    )
    counter = count()
    counted = (record for record, _ in zip(records, counter, strict=False))
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".export-", delete=False) as file:
        partial = Path(file.name)
    try:
        chosen.write(partial, header, counted)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return next(counter)


class _Jsonl:
    """Lines of JSON; `compressed` by gzip."""

    def __init__(self, *, compressed: bool = False) -> None:
        self._open: Any = gzip.open if compressed else open

    def header(self, path: Path) -> bytes:
        with _read_errors(path), self._open(path, "rb") as file:
            return _line(file) or b""

    def records(self, path: Path) -> Iterator[Record]:
        with _read_errors(path), self._open(path, "rb") as file:
            _line(file)
            number = 0
            while (line := _line(file)) and line != _end(number):
                number += 1
                yield _record(path, number, line)
            if line is None:
                raise BadFile(f"{path}: it ends before its last line")

    def write(self, path: Path, header: bytes, records: Iterable[Record]) -> None:
        with self._open(path, "wb") as file:
            file.write(header + b"\n")
            number = 0
            for record in records:
                number += 1
                rows = base64.b64encode(record.rows)
                file.write(
                    b'{"reference":%b,"views":"%b","descriptors":"%b"}\n'
                    % (record.row, record.views.encode(), rows)
                )
            file.write(_end(number))


def _end(number: int) -> bytes:
    """The last line: without it the file was cut."""
    return b'{"references":%d}\n' % number


def _line(file: IO[bytes]) -> bytes | None:
    """The next line; None at the end. One too long is cut, which is no JSON."""
    return file.readline(_LINE_BYTES) or None


def _record(path: Path, number: int, line: bytes) -> Record:
    try:
        told = json.loads(line)
        rows = base64.b64decode(told["descriptors"], validate=True)
        views = str(told["views"])
        views.encode()  # half a character of two is none
        return Record(json.dumps(told["reference"]).encode(), views, rows)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise BadFile(f"{path}: record {number}: not a line of this format") from None


class _Npz:
    """`references`: lines of JSON; `views`: lines of names; `descriptors`: fp16 [rows, dims].

    The rows of reference n are those from `ends[n - 1]` up to `ends[n]`.
    """

    def header(self, path: Path) -> bytes:
        return self._read(path, "header").tobytes()

    def records(self, path: Path) -> Iterator[Record]:
        references = self._read(path, "references").tobytes().splitlines()
        views = self._read(path, "views").tobytes().decode("utf-8", "replace").splitlines()
        ends = self._read(path, "ends")
        rows = self._read(path, "descriptors")
        parts = len(references), len(views), len(ends)
        if len(set(parts)) > 1 or ends.dtype != np.int64 or ends.ndim != 1:
            raise BadFile(f"{path}: its arrays do not go together")
        if rows.dtype != np.dtype("<f2") or rows.ndim != 2 or (ends[-1:] != len(rows)).any():  # noqa: PLR2004
            raise BadFile(f"{path}: its descriptors are not fp16 [rows, dims]")
        begin = 0
        for row, names, end in zip(references, views, ends.tolist(), strict=True):
            yield Record(row, names, rows[begin : max(begin, end)].tobytes())
            begin = end

    def write(self, path: Path, header: bytes, records: Iterable[Record]) -> None:
        whole = list(records)
        model = json.loads(header)["model"]
        lengths = [len(record.rows) // (2 * model["dims"]) for record in whole]
        rows = np.frombuffer(b"".join(record.rows for record in whole), dtype="<f2")
        texts = {
            "references": b"".join(record.row + b"\n" for record in whole),
            "views": "".join(record.views + "\n" for record in whole).encode(),
            "header": header,
        }
        with path.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                **{name: np.frombuffer(text, dtype=np.uint8) for name, text in texts.items()},
                ends=np.cumsum(lengths, dtype=np.int64),
                descriptors=rows.reshape(-1, model["dims"]),
            )

    def _read(self, path: Path, name: str) -> npt.NDArray[np.generic]:
        with _read_errors(path):
            with zipfile.ZipFile(path) as packed:
                if any(part.compress_type != zipfile.ZIP_STORED for part in packed.infolist()):
                    raise BadFile(f"{path}: its arrays are compressed")  # and may be of any size
                if {part.filename for part in packed.infolist()} != {f"{m}.npy" for m in _MEMBERS}:
                    raise BadFile(f"{path}: not a file of references: other arrays")
                size = packed.getinfo(f"{name}.npy").file_size
                with packed.open(f"{name}.npy") as member:
                    major, _ = np.lib.format.read_magic(member)
                    if major != 1:
                        raise BadFile(f"{path}: {name}: another version of .npy")
                    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
                    if dtype.hasobject or int(np.prod(shape)) * dtype.itemsize > size:
                        raise BadFile(f"{path}: {name}: more than the file holds")
            with np.load(path, allow_pickle=False) as arrays:
                found: npt.NDArray[np.generic] = arrays[name]
            return found


class _Parquet:
    """Columns `reference` (JSON), `views`, `descriptors`; the header is in the schema."""

    def header(self, path: Path) -> bytes:
        with self._file(path) as file:
            found: bytes = (file.schema_arrow.metadata or {}).get(_METADATA, b"")
            return found

    def records(self, path: Path) -> Iterator[Record]:
        with self._file(path) as file:
            columns = ["reference", "views", "descriptors"]
            if set(columns) - set(file.schema_arrow.names):
                raise BadFile(f"{path}: not a file of references: other columns")
            for batch in file.iter_batches(AT_ONCE, columns=columns):
                for row, views, rows in zip(*(batch[c].to_pylist() for c in columns), strict=True):
                    if not (isinstance(row, str) and isinstance(views, str)):
                        raise BadFile(f"{path}: its columns are of other types")
                    yield Record(row.encode(), views, rows if isinstance(rows, bytes) else b"")

    def write(self, path: Path, header: bytes, records: Iterable[Record]) -> None:
        pa, parquet = _pyarrow()
        schema = pa.schema(
            [("reference", pa.string()), ("views", pa.string()), ("descriptors", pa.binary())],
            metadata={_METADATA: header},
        )
        with parquet.ParquetWriter(
            path, schema, compression="zstd", use_dictionary=["views"]
        ) as to:
            for some in batched(records, AT_ONCE):
                columns = [
                    [record.row.decode() for record in some],
                    [record.views for record in some],
                    [record.rows for record in some],
                ]
                to.write_batch(pa.record_batch(columns, schema=schema))

    @contextmanager
    def _file(self, path: Path) -> Iterator[Any]:
        pa, parquet = _pyarrow()
        try:
            with _read_errors(path), parquet.ParquetFile(path) as file:
                yield file
        except pa.ArrowException as error:
            raise BadFile(f"{path}: not Parquet that can be read: {type(error).__name__}") from None


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        raise BadFile("Parquet needs pyarrow: pip install 'copysieve[parquet]'") from None
    return pa, parquet


type _Format = _Jsonl | _Npz | _Parquet

_FORMATS: dict[str, _Format] = {
    ".jsonl": _Jsonl(),
    ".jsonl.gz": _Jsonl(compressed=True),
    ".npz": _Npz(),
    ".parquet": _Parquet(),
}


def _format_of(path: Path) -> _Format:
    for suffix, found in _FORMATS.items():
        if path.name.endswith(suffix):
            return found
    raise BadFile(f"{path}: expected one of {', '.join(_FORMATS)}")


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise BadFile(f"{path}: cannot be read: {type(error).__name__}") from None
