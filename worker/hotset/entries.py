"""Entries of the change stream: how each is written, and read back.

An entry is complete: whoever has applied all before it needs nothing else. It is one change or
several that are one, and `seq` counts them: an entry with three has an id that is three above the
one before it. It has `at` (the writer's clock, Unix seconds), `mark` (unique), `previous` (the mark
before), `changes` (their number), `model` (whose descriptors it has), and `packed`: for each
change, numbered from 0: `0:kind`, and by kind `0:row` (reference, bank), `0:descriptors`
(reference, if they changed), `0:id` (removed, bank_removed, calibration), `0:of` (calibration: its
model). They are one field since a script cannot append an entry of more than some thousand fields.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import count

from worker.hotset.layout import (
    Fields,
    Unusable,
    read_calibration_id,
    read_descriptors,
    read_row,
    text,
    write_descriptors,
)
from worker.hotset.types import (
    Accepted,
    Bank,
    BankPut,
    BankRemoved,
    CalibrationPut,
    Change,
    Entry,
    Reference,
    ReferencePut,
    ReferenceRemoved,
)
from worker.records import Model, Version


def write_changes(changes: Sequence[Change], at: float, model_sha256: str = "") -> Fields:
    """Return an entry's fields but its marks; `model_sha256` goes with the puts' descriptors."""
    parts: dict[str, bytes | str] = {}
    for number, change in enumerate(changes):
        parts |= {f"{number}:{name}": value for name, value in _write_change(change).items()}
    head: Fields = ["at", f"{at:.3f}", "changes", str(len(changes)), "model", model_sha256]
    return [*head, "packed", pack(parts)]


def pack(parts: Mapping[str, bytes | str]) -> bytes:
    """Return names and values as one value: for each `NAME LENGTH`, a newline, LENGTH bytes."""
    packed = bytearray()
    for name, value in parts.items():
        raw = value.encode() if isinstance(value, str) else value
        packed += b"%s %d\n" % (name.encode(), len(raw))
        packed += raw
    return bytes(packed)


def unpack(packed: bytes) -> dict[bytes, bytes]:
    """Read what `pack` wrote. Raises ValueError where it is not whole."""
    parts: dict[bytes, bytes] = {}
    at = 0
    while at < len(packed):
        begin = packed.index(b"\n", at) + 1
        name, length = packed[at : begin - 1].split(b" ")
        at = begin + int(length)
        if not begin <= at <= len(packed):
            raise ValueError("it is cut")
        parts[name] = packed[begin:at]
    return parts


def _write_change(change: Change) -> Mapping[str, bytes | str]:
    fields: dict[str, bytes | str]
    match change:
        case ReferencePut(_, row, descriptors):
            fields = {"kind": "reference", "row": row}
            if descriptors is not None:
                fields["descriptors"] = write_descriptors(descriptors)
        case ReferenceRemoved(reference_id):
            fields = {"kind": "removed", "id": reference_id}
        case BankPut(_, row):
            fields = {"kind": "bank", "row": row}
        case BankRemoved(name):
            fields = {"kind": "bank_removed", "id": name}
        case CalibrationPut(of, calibration):
            fields = {"kind": "calibration", "of": of}
            if calibration is not None:
                fields["id"] = calibration
        case Accepted():
            fields = {"kind": "accepted"}
    return fields


def read_entry(entry_id: bytes, raw: Mapping[bytes, bytes], model: Model) -> Entry:
    """Read an entry as seen by one model: descriptors by another are left out. Raises Unusable."""
    name = text(entry_id)
    try:
        if not math.isfinite(at := float(raw[b"at"])):
            raise Unusable("change", name, "at")
        return Entry(
            Version.parse(name),
            mark=text(raw[b"mark"]),
            previous=text(raw[b"previous"]),
            at=at,
            changes=_read_changes(name, raw, unpack(raw[b"packed"]), model),
        )
    except KeyError as error:
        raise Unusable("change", name, text(error.args[0])) from None
    except ValueError:
        raise Unusable("change", name, "id, at or packed") from None


def _read_changes(
    name: str, raw: Mapping[bytes, bytes], parts: Mapping[bytes, bytes], model: Model
) -> list[Change]:
    described = raw[b"model"] == model.sha256.encode()
    changes: list[Change] = []
    for number in map(b"%d:".__mod__, count()):
        if number + b"kind" not in parts:
            break
        fields = {
            field: parts[number + field]
            for field in (b"kind", b"row", b"descriptors", b"id", b"of")
            if number + field in parts
        }
        changes.append(_read_change(name, fields, model if described else None))
    if str(len(changes)).encode() != raw[b"changes"]:
        raise Unusable("change", name, "changes")
    return changes


def _read_change(name: str, fields: Mapping[bytes, bytes], model: Model | None) -> Change:
    change: Change
    match fields[b"kind"]:
        case b"reference":
            reference, descriptors = read_row(Reference, name, fields[b"row"]), None
            if model is not None:
                descriptors = read_descriptors(name, fields[b"descriptors"], model.dims)
            change = ReferencePut(reference, fields[b"row"], descriptors)
        case b"removed":
            change = ReferenceRemoved(text(fields[b"id"]))
        case b"bank":
            change = BankPut(read_row(Bank, name, fields[b"row"]), fields[b"row"])
        case b"bank_removed":
            change = BankRemoved(text(fields[b"id"]))
        case b"calibration":
            current = read_calibration_id(fields[b"id"]) if b"id" in fields else None
            change = CalibrationPut(text(fields[b"of"]), current)
        case b"accepted":
            change = Accepted()
        case _:
            raise KeyError(b"kind")
    return change
