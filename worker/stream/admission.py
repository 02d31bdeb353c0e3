"""From a record to an upload: every form in which an upload event may come.

JSON (an `UploadEvent`), the same as CloudEvents in binary mode (the attributes are in `ce_*`
headers, the value is the event), and raw images (`content-type: image/*`: the value is the image).
"""

import base64
import binascii
from codecs import BOM_UTF8
from datetime import datetime

from pydantic import ValidationError

from worker.errors import BadEvent, DeadLetterReason
from worker.events import UploadEvent
from worker.records import Record, Upload

_ID_LENGTH = 512


def read(record: Record, record_bytes: int) -> Upload:
    """Read one record. Raises BadEvent for what is no upload event, or above `record_bytes`."""
    if record.size > record_bytes:
        raise BadEvent(
            DeadLetterReason.TOO_LARGE,
            f"a record of {record.size} bytes, limits.record_bytes is {record_bytes}",
        )
    if not record.value:
        raise BadEvent(DeadLetterReason.NO_VALUE, "a record without a value")
    headers = {name.lower(): value or b"" for name, value in record.headers}
    content_type = _text(headers, "content-type", "application/json").split(";")[0].strip().lower()
    if content_type.startswith("image/"):
        return _raw(record, headers)
    if content_type == "application/cloudevents+json":
        raise BadEvent(
            DeadLetterReason.INVALID_EVENT, "CloudEvents in structured mode: send binary mode"
        )
    return _json(record)


def image_bytes(upload: Upload) -> bytes:
    """The image that came with the event. Raises BadEvent where its base64 is broken."""
    if upload.image_base64 is None:
        return upload.image or b""
    try:
        return base64.b64decode(upload.image_base64, validate=True)
    except (binascii.Error, ValueError):
        raise BadEvent(DeadLetterReason.BAD_BASE64, "image_base64 is not base64") from None


def _json(record: Record) -> Upload:
    try:
        event = UploadEvent.model_validate_json((record.value or b"").removeprefix(BOM_UTF8))
    except ValidationError as error:
        raise _bad(error) from None
    return Upload(
        position=record.position,
        upload_id=event.upload_id,
        received_at=record.received_at,
        image_url=event.image_url,
        image_base64=event.image_base64,
        tenant=event.tenant,
        uploaded_at=event.uploaded_at,
        attributes=event.attributes,
    )


def _raw(record: Record, headers: dict[str, bytes]) -> Upload:
    upload_id = _text(headers, "upload-id", "") or _decoded(record.key or b"", "the key")
    if not 0 < len(upload_id) <= _ID_LENGTH:
        raise BadEvent(
            DeadLetterReason.MISSING_ID,
            f"an image needs an id of 1 to {_ID_LENGTH} characters: header upload-id, or the key",
        )
    try:
        uploaded_at = datetime.fromisoformat(_text(headers, "ce_time", ""))
    except ValueError:
        uploaded_at = None
    return Upload(
        position=record.position,
        upload_id=upload_id,
        received_at=record.received_at,
        image=record.value,
        tenant=_text(headers, "tenant", "")[:_ID_LENGTH] or None,
        uploaded_at=uploaded_at if uploaded_at and uploaded_at.tzinfo else None,
    )


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
    return BadEvent(reason, f"{name}: {first['msg'].removeprefix('Value error, ')}")
