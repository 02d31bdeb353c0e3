"""From a record to an upload: every form in which an upload event may come.

JSON (an `UploadEvent`), the same as CloudEvents in binary mode (the attributes are in `ce_*`
headers, the value is the event), and raw images (`content-type: image/*`: the value is the image).
"""

import base64
import binascii
import json
from codecs import BOM_UTF8
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from enum import Enum, auto
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from worker.errors import BadEvent, DeadLetterReason, Unscreenable, UnscreenedReason
from worker.events import CANARY_PREFIX, ID_LENGTH, Identifier, Time, UploadEvent
from worker.records import Headers, Record, Unreadable, Upload

CANARY_HEADER = "copysieve-canary"
"""Of the worker's own canaries: their signature."""
_HEADERS = ("content-type", "upload-id", "tenant", "ce_time", CANARY_HEADER)
_IDENTIFIER: TypeAdapter[str] = TypeAdapter(Identifier)
_TIME: TypeAdapter[datetime] = TypeAdapter(Time)
_LONG = 1024
_OTHER_BYTES = 1024 * 1024
"""How much of an event may be something else than its image."""


class Signer(Enum):
    """Who signed a canary, by its signature."""

    OURS = auto()
    """A replica of this namespace."""
    ANOTHER = auto()
    """Its key is none of ours: a replica of another namespace that screens the same topic."""
    NOBODY = auto()
    """Not signed, or signed in our name by somebody without the key."""


type SignerOf = Callable[[str, bytes, bytes], Signer]
"""Who signed upload id and value of a canary so."""


def unsigned(_upload_id: str, _value: bytes, _signature: bytes) -> Signer:
    """Where no key is known, no signature counts."""
    return Signer.NOBODY


def read(record: Record, record_bytes: int, signer_of: SignerOf = unsigned) -> Upload:
    """Read one record.

    Raises BadEvent for what is no upload event, or above `record_bytes`, and for a canary's id
    that NOBODY signed: an upload that gets no verdict must not be anybody's to publish. What
    ANOTHER namespace signed is an ordinary upload here: whether its signature is genuine cannot be
    known, so it is screened, matched and gets a verdict like all others.
    """
    if isinstance(record.value, Unreadable):
        raise BadEvent(record.value.reason, record.value.detail)
    if record.size > record_bytes:
        raise BadEvent(
            DeadLetterReason.TOO_LARGE,
            f"a record of {record.size} bytes, limits.record_bytes is {record_bytes}",
        )
    if not record.value:
        raise BadEvent(DeadLetterReason.NO_VALUE, "a record without a value")
    headers = _headers(record.headers)
    content_type = _text(headers, "content-type", "application/json").split(";")[0].strip().lower()
    if content_type.startswith("image/"):
        upload = _raw(record, headers)
    elif content_type == "application/cloudevents+json":
        raise BadEvent(
            DeadLetterReason.INVALID_EVENT, "CloudEvents in structured mode: send binary mode"
        )
    else:
        upload = _json(record)
    if not upload.upload_id.startswith(CANARY_PREFIX):
        return upload
    signer = signer_of(upload.upload_id, record.value, headers.get(CANARY_HEADER, b""))
    if signer is Signer.NOBODY:
        raise BadEvent(
            DeadLetterReason.RESERVED_ID,
            f"upload ids that begin with {CANARY_PREFIX} are the worker's own",
        )
    return replace(upload, is_canary=signer is Signer.OURS)


def verify_digest(upload: Upload, sha256: str) -> None:
    """Compare the digest of the bytes at hand, in lower-case hex, with the event's if it has one.

    Raises Unscreenable (`digest_mismatch`): the platform shows another file than this one.
    """
    if upload.sha256 is not None and upload.sha256 != sha256:
        detail = f"the image's sha256 is {sha256}, the event says {upload.sha256}"
        raise Unscreenable(UnscreenedReason.DIGEST_MISMATCH, detail)


def _json(record: Record) -> Upload:
    value = (record.value or b"").removeprefix(BOM_UTF8)
    # No base64 has these, so all of them lie beside the image. Each may become an object of many
    # bytes, in two readers, on the one thread that reads: so they are counted before.
    _refuse_bulk(sum(value.count(one) for one in b"[{,"))
    try:
        event = UploadEvent.model_validate_json(value)
    except ValidationError as error:
        raise _bad(error) from None
    _refuse_bulk(len(value) - len((event.image_base64 or "").encode()))
    _refuse_ambiguity(value, event)
    return Upload(
        origin=record.origin,
        upload_id=event.upload_id,
        image_url=event.image_url,
        image=None if event.image_base64 is None else _bytes(event.image_base64),
        tenant=event.tenant,
        uploaded_at=event.uploaded_at,
        sha256=event.sha256,
        attributes=event.attributes,
    )


def _bytes(image_base64: str) -> bytes:
    """Decoded here, so that an image is held once, and not as a record and as text besides."""
    try:
        return base64.b64decode(image_base64, validate=True)
    except (binascii.Error, ValueError):
        raise BadEvent(DeadLetterReason.BAD_BASE64, "image_base64 is not base64") from None


def _raw(record: Record, headers: dict[str, bytes]) -> Upload:
    upload_id = _text(headers, "upload-id", "") or _decoded(record.key or b"", "the key")
    if not 0 < len(upload_id) <= ID_LENGTH:
        raise BadEvent(
            DeadLetterReason.MISSING_ID,
            f"an image needs an id of 1 to {ID_LENGTH} characters: header upload-id, or the key",
        )
    tenant = _text(headers, "tenant", "")
    return Upload(
        origin=record.origin,
        upload_id=_identifier(upload_id, "the id (header upload-id, or the key)"),
        image=record.value,
        tenant=_identifier(tenant, "header tenant") if tenant else None,
        uploaded_at=_time(_text(headers, "ce_time", "")),
    )


def _headers(headers: Headers) -> dict[str, bytes]:
    """The headers that are looked at. Kafka allows one twice: which of two counts, nobody knows."""
    found: dict[str, bytes] = {}
    for name, value in headers:
        known = name.lower()
        if known in _HEADERS and found.setdefault(known, value or b"") != (value or b""):
            raise BadEvent(DeadLetterReason.INVALID_EVENT, f"header {known}: two that differ")
    return found


def _identifier(text: str, what: str) -> str:
    try:
        return _IDENTIFIER.validate_python(text)
    except ValidationError as error:
        raise BadEvent(DeadLetterReason.INVALID_EVENT, f"{what}: {_message(error)}") from None


def _time(text: str) -> datetime | None:
    try:
        return _TIME.validate_strings(text)
    except ValidationError:
        return None


def _text(headers: dict[str, bytes], name: str, default: str) -> str:
    value = headers.get(name)
    return default if value is None else _decoded(value, f"header {name}")


def _decoded(value: bytes, what: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BadEvent(DeadLetterReason.INVALID_EVENT, f"{what} is not UTF-8") from None


def _bad(error: ValidationError) -> BadEvent:
    """The first thing wrong, by its name; never its value."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return BadEvent(DeadLetterReason.NOT_JSON, "the value is not JSON")
    name = str(first["loc"][0]) if first["loc"] else "event"
    reason = (
        DeadLetterReason.MISSING_ID
        if (name, first["type"]) == ("upload_id", "missing")
        else DeadLetterReason.INVALID_EVENT
    )
    return BadEvent(reason, f"{name}: {_message(error)}")


def _message(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return first["msg"].removeprefix("Value error, ")


def _refuse_bulk(nbytes: int) -> None:
    if nbytes > _OTHER_BYTES:
        detail = f"more than {_OTHER_BYTES} bytes beside image_base64"
        raise BadEvent(DeadLetterReason.INVALID_EVENT, detail)


def _refuse_ambiguity(value: bytes, event: UploadEvent) -> None:
    """Raise BadEvent for what another reader of this JSON would read otherwise.

    pydantic takes the last of two fields with one name, others the first: what is screened here
    would not be what is shown there. NaN and Infinity are not JSON.
    """
    image = (event.image_base64 or "").encode()
    at = value.find(image[:_LONG])
    if len(image) > _LONG and value.startswith(image, at):
        # Long, and without structure (else it is no base64, and refused later): not read twice.
        value = value[:at] + value[at + len(image) :]
    try:
        _STRICT.decode(value.decode())
    except (ValueError, RecursionError):  # pydantic's reader and Python's need not agree
        raise BadEvent(DeadLetterReason.NOT_JSON, "the value is not JSON") from None


def _once(fields: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in fields}) != len(fields):
        raise BadEvent(DeadLetterReason.INVALID_EVENT, "an object has two fields with one name")


def _no_constant(_: str) -> NoReturn:
    raise BadEvent(DeadLetterReason.NOT_JSON, "the value is not JSON: NaN or Infinity")


_STRICT = json.JSONDecoder(
    object_pairs_hook=_once, parse_constant=_no_constant, parse_int=str, parse_float=str
)
