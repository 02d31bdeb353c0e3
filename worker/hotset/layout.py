"""The hot set's layout in Redis: its keys, and how each value is written and read back.

All keys begin with one hash tag, `{namespace}`, so they share a slot of a cluster and a script may
touch them together:

    {ns}:head                 hash    epoch (Unix ms), seq, mark of the last change, accepted;
                                      count:KIND and sum:KIND of the values of each kind
    {ns}:changes              stream  what changed, ids `epoch-seq` without gaps
    {ns}:banks                hash    name -> Bank (JSON)
    {ns}:references:B         hash    reference id -> Reference (JSON)
    {ns}:descriptors:SHA:B    hash    reference id -> descriptors by the model of that digest
    {ns}:models               hash    digest -> name of each model that has descriptors here
    {ns}:removed              hash    reference id -> Tombstone (JSON)
    {ns}:calibration          hash    digest of a model -> id of its current calibration;
                                      `previous:DIGEST` -> of the one before, or `none`
    {ns}:calibrations         hash    id -> KeptCalibration (JSON) of all that are kept
    {ns}:calibration:ID       hash    0, 1, ... -> parts of its artefact, which never changes
    {ns}:replicas             set     NAME:PROCESS of each replica
    {ns}:replica:NAME:PROCESS string  Heartbeat (JSON), expires
    {ns}:replica:NAME:PROCESS:left  string  it stopped in order, expires
    {ns}:canary:key           string  what canaries are signed with: 32 random bytes, in hex
    {ns}:canary:lease         string  token of the replica that publishes canaries, expires
    {ns}:audit                stream  who changed what when, ids in Unix ms; see audit.py
    {ns}:floods               set     what is in flood: `BANK`, or `BANK:REFERENCE`
    {ns}:flood:SUBJECT:SLICE  hll     distinct images that it matched in ten minutes, expires
    {ns}:screened:SLICE       string  uploads that were screened in ten minutes, expires
    {ns}:samples              list    Sample (JSON) of recent uploads, latest first, expires

`B` is one of 256 buckets, by the reference id: about 400 fields each at 100,000 references, so
that a snapshot is read in a few hundred replies of a comfortable size. Descriptors are the names of
their views, comma-separated, a newline, and fp16 rows [views, dims], little-endian.

Entries of the stream are in entries.py.

The kinds that are tallied are `banks`, `references`, `descriptors:SHA` and `calibration:SHA`.
`sum` adds up the CRC-32C of field, a zero byte and value: whoever holds the same values has the
same sum. A calibration's id is the digest of its artefact, and so stands for all of it.

What is read back is held to the same rules as what comes in from outside. A value that breaks them
is `Unusable`: it is left out and told of, by key and field, never by content.
"""

import hashlib
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from crc32c import crc32c
from pydantic import TypeAdapter, ValidationError

from worker.errors import StoreError
from worker.events import Identifier
from worker.hotset.types import (
    Bank,
    Descriptors,
    Head,
    Reference,
    Strict,
    Tallies,
    Tally,
    View,
    Views,
)
from worker.records import Version
from worker.telemetry import log, metrics

logger = log.get(__name__)

BUCKETS = 256
_IDENTIFIER: TypeAdapter[str] = TypeAdapter(Identifier)
_VIEWS: TypeAdapter[tuple[View, ...]] = TypeAdapter(Views)
# fp16 rounds a unit vector's norm by far less; zeros and foreign data are caught.
_NORM_TOLERANCE = 0.01


class Unusable(StoreError):
    """One value in Redis breaks the rules; names it and its field, never its content."""

    def __init__(self, what: str, name: str, field: str) -> None:
        super().__init__(f"{what} {name[:128]!a} in Redis cannot be used: {field}")
        self.what = what
        self.name = name
        self.field = field


def reject(error: Unusable) -> None:
    """Count an unusable value and name it in the log."""
    metrics.REJECTED.inc()
    logger.error("hot_set_value_rejected", what=error.what, name=error.name, field=error.field)


class Keys:
    """All keys of one namespace."""

    def __init__(self, namespace: str) -> None:
        self._tag = f"{{{namespace}}}"
        self.head = f"{self._tag}:head"
        self.changes = f"{self._tag}:changes"
        self.audit = f"{self._tag}:audit"
        self.banks = f"{self._tag}:banks"
        self.models = f"{self._tag}:models"
        self.removed = f"{self._tag}:removed"
        self.calibration = f"{self._tag}:calibration"
        self.calibrations = f"{self._tag}:calibrations"
        self.replicas = f"{self._tag}:replicas"
        self.canary_key = f"{self._tag}:canary:key"
        self.canary_lease = f"{self._tag}:canary:lease"
        self.floods = f"{self._tag}:floods"
        self.samples = f"{self._tag}:samples"

    def references(self, bucket: int) -> str:
        """Rows of the references of a bucket."""
        return f"{self._tag}:references:{bucket}"

    def descriptors(self, model_sha256: str, bucket: int) -> str:
        """Descriptors, by one model, of the references of a bucket."""
        return f"{self._tag}:descriptors:{model_sha256}:{bucket}"

    def artefact(self, calibration_id: str) -> str:
        """The parts of a calibration's artefact."""
        return f"{self._tag}:calibration:{calibration_id}"

    def replica(self, identity: str) -> str:
        """A replica's heartbeat."""
        return f"{self._tag}:replica:{identity}"

    def left(self, identity: str) -> str:
        """That a replica has stopped in order, and has told nothing since."""
        return f"{self._tag}:replica:{identity}:left"

    def flood(self, subject: str, number: int) -> str:
        """Images that a `BANK` or a `BANK:REFERENCE` matched in a slice of ten minutes."""
        return f"{self._tag}:flood:{subject}:{number}"

    def screened(self, number: int) -> str:
        """How many uploads were screened in a slice of ten minutes."""
        return f"{self._tag}:screened:{number}"


def bucket_of(reference_id: str) -> int:
    """The bucket that holds a reference."""
    return zlib.crc32(reference_id.encode()) % BUCKETS


def read_row[Row: Strict](model: type[Row], name: str, raw: bytes) -> Row:
    """Read a row as JSON. Raises Unusable."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"] if isinstance(part, int | str))
        raise Unusable(model.__name__.lower(), name, field or first["type"]) from None


def read_bank(name: str, raw: bytes) -> Bank:
    """Read the row of a bank. Raises Unusable."""
    bank = read_row(Bank, name, raw)
    if bank.name != name:
        raise Unusable("bank", name, "name")
    return bank


def read_reference(reference_id: str, raw: bytes) -> Reference:
    """Read the row of a reference. Raises Unusable."""
    reference = read_row(Reference, reference_id, raw)
    if reference.reference_id != reference_id:
        raise Unusable("reference", reference_id, "reference_id")
    return reference


def text(raw: bytes) -> str:
    """Read a name; what is no UTF-8 stays tellable and equals no valid name."""
    return raw.decode("utf-8", "backslashreplace")


def checksum(name: bytes, value: bytes) -> int:
    """What a field of a tallied hash adds to the sum of its kind."""
    return crc32c(value, crc32c(name + b"\0"))


def write_reference(reference: Reference) -> bytes:
    """Return the row of a reference as stored: what is as by default is left out."""
    return reference.model_dump_json(exclude_defaults=True).encode()


def write_bank(bank: Bank) -> bytes:
    """Return the row of a bank as stored."""
    return bank.model_dump_json().encode()


def views_line(views: Sequence[str]) -> bytes:
    """Return what descriptors begin with: which views they are of."""
    return ",".join(views).encode() + b"\n"


def write_descriptors(descriptors: Descriptors) -> bytes:
    """Return the descriptors as stored."""
    rows = np.ascontiguousarray(descriptors.rows, dtype="<f2")
    return views_line(descriptors.views) + rows.tobytes()


def read_views(reference_id: str, line: bytes) -> tuple[View, ...]:
    """Read the names of views, without the end of the line. Raises Unusable."""
    try:
        return _VIEWS.validate_python(tuple(text(line).split(",")))
    except ValidationError:
        raise Unusable("descriptors", reference_id, "views") from None


def read_descriptors(reference_id: str, raw: bytes, dims: int) -> Descriptors:
    """Read descriptors of a model with `dims`. Raises Unusable."""
    line, _, data = raw.partition(b"\n")
    views = read_views(reference_id, line)
    if len(data) != 2 * len(views) * dims:
        raise Unusable("descriptors", reference_id, "length")
    rows = np.frombuffer(data, dtype="<f2").reshape(len(views), dims)
    wide = rows.astype(np.float32)
    if not are_unit(np.sqrt(np.einsum("vd,vd->v", wide, wide))).all():
        raise Unusable("descriptors", reference_id, "norm")
    return Descriptors(views, rows)


def describe(reference_id: str, raw: bytes) -> Descriptors:
    """Read descriptors of a model whose dims are told by the length alone. Raises Unusable."""
    views = read_views(reference_id, raw.partition(b"\n")[0])
    length = len(raw) - len(views_line(views))
    return read_descriptors(reference_id, raw, dims=max(1, length // (2 * len(views))))


def are_unit(norms: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Whether norms are 1, but for the rounding; what is not finite is not."""
    close: npt.NDArray[np.bool_] = np.abs(norms - 1) <= _NORM_TOLERANCE
    return close


def read_head(raw: Mapping[bytes, bytes]) -> Head | None:
    """Read the head; None before the first change. Raises Unusable."""
    if not raw:
        return None
    try:
        version = Version.parse(f"{text(raw[b'epoch'])}-{text(raw[b'seq'])}")
        return Head(version, text(raw[b"mark"]), text(raw.get(b"accepted", b"")), _tallies(raw))
    except (KeyError, ValueError):
        raise Unusable("head", "head", "epoch, seq, mark or tallies") from None


def _tallies(raw: Mapping[bytes, bytes]) -> Tallies:
    kinds = [name.removeprefix(b"count:") for name in raw if name.startswith(b"count:")]
    return Tallies(
        (text(kind), Tally(int(raw[b"count:" + kind]), int(raw[b"sum:" + kind]))) for kind in kinds
    )


def calibration_id(artefact: bytes) -> str:
    """The id of a calibration: the digest of its artefact."""
    return hashlib.sha256(artefact).hexdigest()[:16]


def read_artefact(name: str, raw: Mapping[bytes, bytes]) -> bytes:
    """Put the parts of an artefact together. Raises Unusable if it is not the one with this id."""
    parts = [raw.get(b"%d" % number, b"") for number in range(len(raw))]
    artefact = b"".join(parts)
    if not artefact or calibration_id(artefact) != name:
        raise Unusable("calibration", name, "artefact")
    return artefact


def read_calibration_id(raw: bytes) -> str:
    """Read the id of a calibration. Raises Unusable."""
    try:
        return _IDENTIFIER.validate_python(text(raw))
    except ValidationError:
        raise Unusable("calibration", "calibration", "id") from None


type Fields = list[bytes | str]
"""Names and values of an entry of a stream, in turn."""
