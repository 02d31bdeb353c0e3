"""The plan of the demo: what is uploaded in which form, and what must come of it.

Copies, benign pictures and broken uploads, in every format and transport, in an order that is
random and always the same.
"""

import base64
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Literal

from PIL import Image

from worker.demo.pictures import Picture
from worker.errors import DeadLetterReason, UnscreenedReason
from worker.image.edits import EDITS, UNEDITED
from worker.records import Headers

type Format = Literal["JPEG", "PNG", "WEBP", "GIF"]
type Transport = Literal["base64", "raw", "link"]

FORMATS: tuple[Format, ...] = ("JPEG", "PNG", "WEBP", "GIF")
TRANSPORTS: tuple[Transport, ...] = ("base64", "raw", "link")
ENCODING: dict[Format, dict[str, int]] = {
    "JPEG": {"quality": 88},
    "PNG": {"compress_level": 1},
    "WEBP": {"quality": 80, "method": 1},
    "GIF": {},
}
SHARE_OF_COPIES = 0.5
THUMBNAIL = 220
START_OF_SCAN = b"\xff\xda"
SEED = 20220410


@dataclass(frozen=True, slots=True)
class Upload:
    """One upload of `picture`. `expected` is what must come of it; of a copy its reference.

    `image` is what a link leads to, or what lies in the record; `value` is the record's.
    """

    upload_id: str
    kind: Literal["copy", "benign", "broken"]
    picture: str
    what: str
    expected: str | None
    transport: Transport
    format: str
    image: bytes
    value: bytes
    headers: Headers
    thumbnail: bytes = b""


@dataclass(frozen=True, slots=True)
class _Order:
    """A picture to be made: which, how, and how it travels."""

    kind: Literal["copy", "benign"]
    picture: Picture
    what: str
    make: Callable[[Image.Image], Image.Image]
    format: Format
    transport: Transport


def plan(
    references: Sequence[Picture], benign: Sequence[Picture], count: int, link: str
) -> list[Upload]:
    """`count` uploads. `link` is the address under which linked images are found by upload id.

    Every reference comes once unedited if `count` allows.
    """
    luck = random.Random(SEED)  # noqa: S311 - the same demo every time
    broken = _broken(link, luck)[: max(1, count // 10)]
    copies = round((count - len(broken)) * SHARE_OF_COPIES)
    orders = [
        *islice(_copies(references), copies),
        *islice(_benign(benign, luck), count - len(broken) - copies),
    ]
    with ThreadPoolExecutor() as pool:
        uploads = list(
            pool.map(lambda pair: _upload(pair[0], pair[1], link), enumerate(orders, start=1))
        )
    uploads += broken
    luck.shuffle(uploads)
    return uploads


def _copies(references: Sequence[Picture]) -> Iterator[_Order]:
    """Every reference unedited, then its edits in turn, then all over again in other formats."""
    edits = [what for what in EDITS if what != UNEDITED]
    number = 0
    while True:
        for turn in range(len(EDITS)):
            for place, picture in enumerate(references):
                # Diagonally: a short demo shows many edits, and not one edit of all pictures.
                what = edits[(turn + place) % len(edits)] if turn else UNEDITED
                yield _Order("copy", picture, what, EDITS[what], *_form(number))
                number += 1


def _benign(pictures: Sequence[Picture], luck: random.Random) -> Iterator[_Order]:
    """Each picture whole, then endless crops, so that no two uploads are the same."""
    number = 0
    for picture in pictures:
        yield _Order("benign", picture, "whole", EDITS[UNEDITED], *_form(number))
        number += 1
    while True:
        for picture in pictures:
            share = luck.uniform(0.5, 0.95)
            cut = partial(_cut, share, luck.random(), luck.random())
            yield _Order("benign", picture, f"crop to {share:.0%}", cut, *_form(number))
            number += 1


def _cut(share: float, x: float, y: float, image: Image.Image) -> Image.Image:
    """A rectangle of `share` of width and height, at `x` and `y` from 0 to 1."""
    width, height = int(image.width * share), int(image.height * share)
    left, top = int((image.width - width) * x), int((image.height - height) * y)
    return image.crop((left, top, left + width, top + height))


def _form(number: int) -> tuple[Format, Transport]:
    return FORMATS[number % len(FORMATS)], TRANSPORTS[number % len(TRANSPORTS)]


def _upload(number: int, order: _Order, link: str) -> Upload:
    edited = order.make(order.picture.image)
    image = _encode(edited, order.format)
    upload_id = f"{order.kind}-{number:04}"
    value, headers = _record(upload_id, order.transport, order.format, image, link)
    return Upload(
        upload_id=upload_id,
        kind=order.kind,
        picture=order.picture.name,
        what=order.what,
        expected=order.picture.name if order.kind == "copy" else None,
        transport=order.transport,
        format=order.format,
        image=image,
        value=value,
        headers=headers,
        thumbnail=thumbnail(edited),
    )


def thumbnail(picture: Image.Image) -> bytes:
    """A small JPEG for the report."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return _encode(small, "JPEG")


def _record(
    upload_id: str, transport: Transport, kind: Format, image: bytes, link: str
) -> tuple[bytes, Headers]:
    """Value and headers of the upload's record."""
    if transport == "raw":
        return image, (
            ("content-type", f"image/{kind.lower()}".encode()),
            ("upload-id", upload_id.encode()),
        )
    where = (
        {"image_url": f"{link}/{upload_id}"}
        if transport == "link"
        else {"image_base64": base64.b64encode(image).decode()}
    )
    return _event(upload_id, **where), ()


def _event(upload_id: str, **where: str) -> bytes:
    now = datetime.now(UTC).isoformat()
    return json.dumps({"upload_id": upload_id, "uploaded_at": now, **where}).encode()


def _broken(link: str, luck: random.Random) -> list[Upload]:
    """What strangers send: each with the reason that the worker must give."""
    noise = Image.effect_noise((320, 240), luck.uniform(40, 60)).convert("RGB")
    cut = _encode(noise, "JPEG")
    cut = cut[: cut.index(START_OF_SCAN)]
    text = b"This is not a picture.\n" * 20
    metadata = "http://169.254.169.254/latest/meta-data/"
    jpeg: Headers = (("content-type", b"image/jpeg"),)

    def one(what: str, expected: str, value: bytes, headers: Headers = ()) -> Upload:
        transport: Transport = "raw" if headers else "link" if b"image_url" in value else "base64"
        upload_id = "broken-" + what.replace(" ", "-")
        return Upload(upload_id, "broken", "", what, expected, transport, "", b"", value, headers)

    def said(what: str, **where: str) -> bytes:
        return _event("broken-" + what.replace(" ", "-"), **where)

    return [
        one("cut JPEG", UnscreenedReason.UNDECODABLE, cut, jpeg),
        one("text as JPEG", UnscreenedReason.UNSUPPORTED_FORMAT, text, jpeg),
        one("no JSON", DeadLetterReason.NOT_JSON, b"{upload_id: 7"),
        one(
            "dead link",
            UnscreenedReason.FETCH_NOT_FOUND,
            said("dead link", image_url=f"{link}/nothing-here"),
        ),
        one(
            "link to metadata",
            UnscreenedReason.FETCH_DENIED,
            said("link to metadata", image_url=metadata),
        ),
    ]


def _encode(picture: Image.Image, kind: Format) -> bytes:
    encoded = io.BytesIO()
    picture.save(encoded, kind, **ENCODING[kind])
    return encoded.getvalue()
